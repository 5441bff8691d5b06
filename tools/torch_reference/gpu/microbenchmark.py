"""Every step of a block alone at full size: which implementation is fastest, and how far from the machine's ceiling.

B batch (1), N tokens, C width, H heads, D head width.
"""

import traceback
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F

from ospnext_ms.skiparse import SkiparsePlan
from tools.torch_reference.gpu import float8, float8_kernels, fused
from tools.torch_reference.gpu.attention_backends import attention_backend, candidates, candidates_float8
from tools.torch_reference.gpu.sequence import PackedSequence, attend_sub_sequences
from tools.torch_reference.gpu.timing import sustained_rate, timed

REPEATS = 7
# Backends of attention that one call each cannot tell apart are measured by turns under load.
CLOSE, LOAD_SECONDS = 1.2, 0.3


class Table:
    """Prints a row as soon as it is measured; a step that fails prints its error and the rest goes on."""

    def __init__(self, device):
        self.device = device
        self.rows = []

    def add(self, name, function, flops=0, num_bytes=0):
        """Times `function`; returns seconds, or infinity where it failed."""
        try:
            seconds = median(timed(function, REPEATS, self.device, warm_up=2))
        except Exception as error:
            print(f"  {name:<44} failed: {type(error).__name__}: {str(error)[:160]}", flush=True)
            self.rows.append({"name": name, "error": traceback.format_exc()})
            return float("inf")
        rates = f"{flops / seconds / 1e12:8.1f} TFLOP/s" if flops else ""
        rates += f"{num_bytes / seconds / 1e12:8.2f} TB/s" if num_bytes else ""
        print(f"  {name:<44}{seconds * 1e3:9.3f} ms {rates}", flush=True)
        self.rows.append({"name": name, "seconds": seconds, "flops": flops, "bytes": num_bytes})
        return seconds


def fastest_attention(config, grid, device, dtype, table=None, training=False):
    """{"full", "sparse", "cross" and the same with "-8bit": name of the fastest backend} on q, k, v of a whole video.

    Times go to `table`.
    """
    table = table or Table(device)
    plan = SkiparsePlan(grid, config.sparse_ratio)
    runs = PackedSequence(config.sparse_ratio).order(grid, "token", config.head_dim, device).runs
    q, k, v = (torch.randn(1, plan.num_tokens, config.num_heads, config.head_dim, device=device, dtype=dtype)
               for _ in range(3))
    pairs = {"full": plan.num_tokens**2, "sparse": sum(n * n for n in plan.token_lengths),
             "cross": plan.num_tokens * config.text_len}
    best = _fastest(table, "", candidates(device, training), (q, k, v), runs, pairs, config)
    names = candidates_float8(device)
    if names == ("default",):
        return best | {f"{kind}-8bit": "default" for kind in best}
    codes = tuple(x.to(torch.float8_e4m3fn) for x in (q, k, v))
    return best | _fastest(table, "-8bit", names, codes, runs, pairs, config)


def _fastest(table, suffix, names, operands, runs, pairs, config):
    """{kind + suffix: fastest of `names`}; operands are codes at scale 1 where there is a suffix."""
    q, k, v = operands
    text = operands[0], k[:, : config.text_len], v[:, : config.text_len]
    scales = (torch.ones(config.num_heads, device=q.device),) * 3 if suffix else None
    calls = {"full": lambda attention: attention(q, k, v), "cross": lambda attention: attention(*text),
             "sparse": lambda attention: attend_sub_sequences(attention, q, k, v, runs)}
    best = {}
    for kind, call in calls.items():
        seconds = {}
        for name in names:
            if kind == "sparse" or name != "fa3-varlen":
                seconds[name] = table.add(f"attention {kind}{suffix}, {name}",
                                          partial(call, attention_backend(name).scaled(scales)),
                                          flops=4 * config.dim * pairs[kind])
        close = [name for name in names if seconds.get(name, float("inf")) <= CLOSE * min(seconds.values())]
        best[kind + suffix] = close[0] if len(close) < 2 else _fastest_under_load(
            {name: partial(call, attention_backend(name).scaled(scales)) for name in close}, q.device)
    return best


def _fastest_under_load(calls, device):
    """Of {name: function} the name of the fastest at the clock that the card holds, whichever came first."""
    rates = {name: [] for name in calls}
    # There and back, as a card that heats up slows down.
    for name in (*calls, *reversed(calls)):
        rates[name].append(sustained_rate(1, calls[name], device, LOAD_SECONDS))
    words = (f"{name} {1e3 / median(each):.3f} ms" for name, each in rates.items())
    print(f"  under load: {', '.join(words)}", flush=True)
    return max(calls, key=lambda name: median(rates[name]))


def microbenchmark(config, grid, device, dtype):
    """Times the steps of a block and returns the rows."""
    table = Table(device)
    tokens = SkiparsePlan(grid, config.sparse_ratio).num_tokens
    with torch.inference_mode():
        _linears(table, config, tokens, device, dtype)
        _elementwise(table, config, grid, tokens, device, dtype)
        _float8(table, config, tokens, device, dtype)
        fastest_attention(config, grid, device, dtype, table)
    return table.rows


def _linears(table, config, tokens, device, dtype):
    x = torch.randn(1, tokens, config.dim, device=device, dtype=dtype)
    with torch.device(device):
        square = torch.nn.Linear(config.dim, config.dim, dtype=dtype)
        up = torch.nn.Linear(config.dim, config.ffn_dim, dtype=dtype)
        down = torch.nn.Linear(config.ffn_dim, config.dim, dtype=dtype)
    ffn = 2 * tokens * config.dim * config.ffn_dim
    hidden = torch.randn(1, tokens, config.ffn_dim, device=device, dtype=dtype)
    for name in ("eager", "triton") if torch.device(device).type == "cuda" else ("eager",):
        kernels = fused.kernels(name)
        table.add(f"linear C -> C, {name}", lambda k=kernels: k.linear(x, square), 2 * tokens * config.dim**2)
        table.add(f"linear C -> FFN, {name}", lambda k=kernels: k.linear(x, up), ffn)
        table.add(f"linear C -> FFN and GELU, {name}", lambda k=kernels: k.linear_gelu(x, up), ffn)
        table.add(f"linear FFN -> C, {name}", lambda k=kernels: k.linear(hidden, down), ffn)
    table.add("GELU alone", lambda: F.gelu(hidden, approximate="tanh"), num_bytes=2 * hidden.nbytes)


def _elementwise(table, config, grid, tokens, device, dtype):
    y = torch.randn(1, tokens, config.dim, device=device, dtype=dtype)
    gate, factor, shift = (torch.randn(1, config.dim, device=device) for _ in range(3))
    weight = 1 + 0.01 * torch.randn(config.dim, device=device)
    sequence = PackedSequence(config.sparse_ratio)
    order = sequence.order(grid, "token", config.head_dim, device)
    tables = order.cos_Nd, order.sin_Nd
    gather = sequence.switch(y, "owed", None, grid, "group")[2]
    for name in fused.IMPLEMENTATIONS:
        try:
            kernels = fused.kernels(name)
        except ImportError as error:
            print(f"  {name}: {error}", flush=True)
            continue
        for stream in (torch.float32, torch.bfloat16):
            x = y.to(stream)
            calls = {
                "norm": (x.nbytes + y.nbytes, lambda k=kernels, x=x: k.norm(x, factor, shift, dtype)),
                "update_norm": (2 * x.nbytes + 2 * y.nbytes, lambda k=kernels, x=x: k.update_norm(
                    x, y, gate * 1e-3, factor, shift, dtype)),
                "update_norm of a switch": (2 * x.nbytes + 2 * y.nbytes, lambda k=kernels, x=x: k.update_norm(
                    x, y, gate * 1e-3, factor, shift, dtype, gather)),
            }
            for call, (num_bytes, function) in calls.items():
                table.add(f"{call}, {str(stream)[6:]} stream, {name}", function, num_bytes=num_bytes)
        table.add(f"rms_norm, {name}", lambda k=kernels: k.rms_norm(y, weight), num_bytes=2 * y.nbytes)
        table.add(f"rms_norm_rotate, {name}", lambda k=kernels: k.rms_norm_rotate(y, weight, *tables),
                  num_bytes=2 * y.nbytes)
    _triton_variants(table, y, gate, factor, shift, weight, tables, config.num_heads)


def _triton_variants(table, y, gate, factor, shift, weight, tables, num_heads):
    """Rows a program and warps of every hand-written kernel, on an fp32 residual stream."""
    try:
        from tools.torch_reference.gpu import triton_attention, triton_float8, triton_kernels
    except ImportError:
        return
    x = y.float()
    bound_H = torch.full((num_heads,), 70.0, device=y.device)
    for warps in (2, 4, 8):
        table.add(f"update_norm, {warps} warps", lambda w=warps: triton_kernels.update_norm(
            x, y, gate * 1e-3, factor, shift, y.dtype, warps=w), num_bytes=2 * x.nbytes + 2 * y.nbytes)
        table.add(f"update_norm_quantise, {warps} warps", lambda w=warps: triton_float8.update_norm_quantise(
            x, y, gate * 1e-3, factor, shift, y.dtype, "bound", warps=w), num_bytes=2 * x.nbytes + 1.5 * y.nbytes)
        table.add(f"rms_norm_rotate, {warps} warps", lambda w=warps: triton_kernels.rms_norm_rotate(
            y, weight, *tables, warps=w), num_bytes=2 * y.nbytes)
        table.add(f"rotate_quantise, {warps} warps", lambda w=warps: triton_attention.rotate_quantise(
            y, weight, tables, num_heads, bound_H, warps=w), num_bytes=1.5 * y.nbytes)
    for shape in ((block, warps) for block in (2048, 4096, 8192, 16384) for warps in (4, 8)):
        table.add(f"cast, {shape[0]} numbers, {shape[1]} warps", lambda s=shape: triton_float8.quantise_tensor(
            [y], amax=x[0, 0, 0].abs(), shape=s), num_bytes=1.5 * y.nbytes)


def _float8(table, config, tokens, device, dtype):
    """8-bit products and the quantisation of their inputs."""
    name = "triton" if torch.device(device).type == "cuda" else "eager"
    x, y = (torch.randn(1, tokens, config.dim, device=device, dtype=dtype) for _ in range(2))
    x32 = x.float()
    gate, factor, shift = (torch.randn(1, config.dim, device=device) for _ in range(3))
    for scaling in float8.E4M3_SCALINGS:
        kernels = float8_kernels.kernels(name, scaling)
        for inputs, outputs in ((config.dim, config.dim), (config.dim, config.ffn_dim), (config.ffn_dim, config.dim)):
            with torch.device(device):
                layer = float8.Float8Linear(torch.nn.Linear(inputs, outputs, dtype=dtype), scaling)
            operand = torch.randn(1, tokens, inputs, device=device, dtype=dtype)
            quantised = kernels.input_of_linear(operand)
            del operand
            flops = 2 * tokens * inputs * outputs
            table.add(f"8-bit linear {inputs} -> {outputs}, {scaling}",
                      lambda k=kernels, f=layer, q=quantised: k.linear(q, f), flops)
            if outputs > inputs:
                table.add(f"8-bit linear {inputs} -> {outputs}, GELU and codes, {scaling}",
                          lambda k=kernels, f=layer, q=quantised: k.linear_gelu(q, f), flops)
            if scaling == "bound" and inputs == outputs:
                table.add(f"8-bit linear {inputs} -> {outputs} to codes, {scaling}",
                          lambda k=kernels, f=layer, q=quantised: k.linear_codes(q, f), flops)
            del layer, quantised
        table.add(f"quantise C, {scaling}", lambda k=kernels: k._input_of_parts([x]), num_bytes=1.5 * x.nbytes)
        table.add(f"update_norm and quantise, fp32 stream, {scaling}",
                  lambda k=kernels: k.update_norm(x32, y, gate * 1e-3, factor, shift, dtype),
                  num_bytes=2 * x32.nbytes + 1.5 * y.nbytes)
