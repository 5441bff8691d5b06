"""Every step of a block alone at full size: which implementation is fastest, and how far from the machine's ceiling.

B batch (1), N tokens, C width, H heads, D head width.
"""

import traceback
from statistics import median

import torch
import torch.nn.functional as F

from ospnext_ms.skiparse import SkiparsePlan
from tools.torch_reference.gpu import float8, fused
from tools.torch_reference.gpu.attention_backends import attention_backend, candidates
from tools.torch_reference.gpu.sequence import PackedSequence, attend_sub_sequences
from tools.torch_reference.gpu.timing import timed

REPEATS = 7


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


def fastest_attention(config, grid, device, dtype, table=None):
    """{"full", "sparse": name of the fastest backend} on q, k, v of a whole video; times go to `table`."""
    table = table or Table(device)
    plan = SkiparsePlan(grid, config.sparse_ratio)
    runs = PackedSequence(config.sparse_ratio).order(grid, "token", config.head_dim, device).runs
    q, k, v = (torch.randn(1, plan.num_tokens, config.num_heads, config.head_dim, device=device, dtype=dtype)
               for _ in range(3))
    pairs = {"full": plan.num_tokens**2, "sparse": sum(n * n for n in plan.token_lengths)}
    best = {}
    for kind in ("full", "sparse"):
        seconds = {}
        for name in candidates(device):
            attention = attention_backend(name)
            seconds[name] = table.add(
                f"attention {kind}, {name}",
                (lambda a=attention: a(q, k, v)) if kind == "full"
                else (lambda a=attention: attend_sub_sequences(a, q, k, v, runs)),
                flops=4 * config.dim * pairs[kind],
            )
        best[kind] = min(seconds, key=seconds.get)
    return best


def microbenchmark(config, grid, device, dtype):
    """Times the steps of a block and returns the rows."""
    table = Table(device)
    tokens = SkiparsePlan(grid, config.sparse_ratio).num_tokens
    with torch.inference_mode():
        _linears(table, config, tokens, device, dtype)
        _elementwise(table, config, grid, tokens, device, dtype)
        _float8(table, config, tokens, device, dtype)
        fastest_attention(config, grid, device, dtype, table)
        _cross_attention(table, config, tokens, device, dtype)
    return table.rows


def _linears(table, config, tokens, device, dtype):
    x = torch.randn(1, tokens, config.dim, device=device, dtype=dtype)
    with torch.device(device):
        square = torch.nn.Linear(config.dim, config.dim, dtype=dtype)
        up = torch.nn.Linear(config.dim, config.ffn_dim, dtype=dtype)
        down = torch.nn.Linear(config.ffn_dim, config.dim, dtype=dtype)
    table.add("linear C -> C", lambda: F.linear(x, square.weight, square.bias), 2 * tokens * config.dim**2)
    ffn = 2 * tokens * config.dim * config.ffn_dim
    table.add("linear C -> FFN", lambda: F.linear(x, up.weight, up.bias), ffn)
    for name in fused.IMPLEMENTATIONS:
        table.add(f"linear C -> FFN and GELU, {name}", lambda n=name: fused.kernels(n).linear_gelu(x, up), ffn)
    hidden = torch.randn(1, tokens, config.ffn_dim, device=device, dtype=dtype)
    table.add("GELU alone", lambda: F.gelu(hidden, approximate="tanh"), num_bytes=2 * hidden.nbytes)
    table.add("linear FFN -> C", lambda: F.linear(hidden, down.weight, down.bias), ffn)


def _elementwise(table, config, grid, tokens, device, dtype):
    x, y = (torch.randn(1, tokens, config.dim, device=device, dtype=dtype) for _ in range(2))
    gate, factor, shift = (torch.randn(1, config.dim, device=device) for _ in range(3))
    weight = 1 + 0.01 * torch.randn(config.dim, device=device)
    sequence = PackedSequence(config.sparse_ratio)
    order = sequence.order(grid, "token", config.head_dim, device)
    tables = order.cos_Nd, order.sin_Nd
    for name in fused.IMPLEMENTATIONS:
        try:
            kernels = fused.kernels(name)
        except ImportError as error:
            print(f"  {name}: {error}", flush=True)
            continue
        calls = {
            "norm": (2, lambda k=kernels: k.norm(x, factor, shift, dtype)),
            "update_norm": (4, lambda k=kernels: k.update_norm(x, y, gate * 1e-3, factor, shift, dtype)),
            "update": (3, lambda k=kernels: k.update(x, y, gate * 1e-3)),
            "rms_norm": (2, lambda k=kernels: k.rms_norm(y, weight)),
            "rms_norm_rotate": (2, lambda k=kernels: k.rms_norm_rotate(y, weight, *tables)),
        }
        for call, (passes, function) in calls.items():
            table.add(f"{call}, {name}", function, num_bytes=passes * x.nbytes)
        gather = sequence.gather_of_switch(grid, "group", device)
        table.add(f"update_norm of a switch, {name}", lambda k=kernels, g=gather: k.update_norm(
            x, y, gate * 1e-3, factor, shift, dtype, g), num_bytes=4 * x.nbytes)
    _triton_variants(table, x, y, gate, factor, shift, weight, tables)
    table.add("switch token -> group", lambda: sequence.switch(x, grid, "group"), num_bytes=2 * x.nbytes)


def _triton_variants(table, x, y, gate, factor, shift, weight, tables):
    try:
        from tools.torch_reference.gpu import triton_kernels
    except ImportError:
        return
    for shape in ((rows, num_warps) for rows in (1, 2, 4, 8, 16) for num_warps in (4, 8, 16)):
        label = f"{shape[0]} rows, {shape[1]} warps"
        table.add(f"update_norm, triton, {label}", lambda s=shape: triton_kernels.update_norm(
            x, y, gate * 1e-3, factor, shift, x.dtype, shape=s), num_bytes=4 * x.nbytes)
        table.add(f"rms_norm_rotate, triton, {label}", lambda s=shape: triton_kernels.rms_norm_rotate(
            y, weight, *tables, shape=s), num_bytes=2 * y.nbytes)


def _float8(table, config, tokens, device, dtype):
    """8-bit products and the quantisation of their inputs."""
    name = "triton" if torch.device(device).type == "cuda" else "eager"
    x, y = (torch.randn(1, tokens, config.dim, device=device, dtype=dtype) for _ in range(2))
    hidden = torch.randn(1, tokens, config.ffn_dim, device=device, dtype=dtype)
    gate, factor, shift = (torch.randn(1, config.dim, device=device) for _ in range(3))
    for scaling in float8.E4M3_SCALINGS:
        for inputs, outputs in ((config.dim, config.dim), (config.dim, config.ffn_dim), (config.ffn_dim, config.dim)):
            with torch.device(device):
                layer = float8.Float8Linear(torch.nn.Linear(inputs, outputs, dtype=dtype), scaling)
            quantised = float8.quantised(hidden if inputs == config.ffn_dim else x, scaling)
            table.add(f"8-bit linear {inputs} -> {outputs}, scale a {scaling}",
                      lambda f=layer, q=quantised: f(q), 2 * tokens * inputs * outputs)
            del layer, quantised
        kernels = float8.kernels(name, scaling)
        table.add(f"quantise C, scale a {scaling}", lambda k=kernels: k.input_of_linear(x), num_bytes=1.5 * x.nbytes)
        table.add(f"GELU and quantise FFN, scale a {scaling}",
                  lambda k=kernels: k.linear_gelu(hidden, lambda h: h), num_bytes=1.5 * hidden.nbytes)
        table.add(f"update_norm and quantise, scale a {scaling}",
                  lambda k=kernels: k.update_norm(x, y, gate * 1e-3, factor, shift, dtype), num_bytes=3.5 * x.nbytes)


def _cross_attention(table, config, tokens, device, dtype):
    q = torch.randn(1, tokens, config.num_heads, config.head_dim, device=device, dtype=dtype)
    k, v = (torch.randn(1, config.text_len, config.num_heads, config.head_dim, device=device, dtype=dtype)
            for _ in range(2))
    for name in candidates(device):
        table.add(f"cross-attention, {name}", lambda n=name: attention_backend(n)(q, k, v),
                  flops=4 * tokens * config.text_len * config.dim)
