"""Numerical checks of the fast model on the device at hand: against the padded reference, and kernel by kernel."""

import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ospnext_ms.models.config import DiTConfig
from tools.torch_reference.gpu import attention_float8, fused
from tools.torch_reference.gpu.attention_backends import attention_backend, candidates, candidates_float8
from tools.torch_reference.gpu.packed import PackedDiT
from tools.torch_reference.gpu.quantisation import quantise
from tools.torch_reference.gpu.settings import random_inputs, random_model
from tools.torch_reference.gpu.timing import relative_error

CONFIG = DiTConfig(dim=512, ffn_dim=1024, num_heads=4, num_layers=8, freq_dim=64, text_dim=64, text_len=32,
                   num_full_blocks=4)
GOLDEN_CONFIG = DiTConfig(dim=64, ffn_dim=128, num_heads=4, num_layers=8, freq_dim=64, text_dim=32, text_len=16,
                          num_full_blocks=4)
GOLDEN = Path(__file__).parents[3] / "tests" / "golden"
GRIDS = ((2, 8, 8), (3, 7, 10), (1, 6, 6))
BF16_ERROR, FP32_ERROR = 2e-2, 1e-5
E4M3_SWITCH_ERROR, EIGHT_BIT_ERROR = 1e-1, 1e-1


class Checks:
    """Prints each comparison with its bound; `rows` keeps them."""

    def __init__(self):
        self.rows = []

    def compare(self, name, compute, bound):
        """`compute()` returns the error. One that raises counts as failed and the rest goes on."""
        try:
            error = compute()
            passed = error < bound
            note = f"{error:.2e} (bound {bound:.0e})"
        except Exception as exception:
            error, passed = None, False
            note = f"{type(exception).__name__}: {str(exception)[:200]}"
            traceback.print_exc()
        print(f"  {'ok  ' if passed else 'FAIL'} {name:<64} {note}", flush=True)
        self.rows.append({"name": name, "error": error, "bound": bound, "passed": passed})

    @property
    def failed(self):
        """Names of the checks that failed."""
        return [row["name"] for row in self.rows if not row["passed"]]


def run_checks(device, kernels=("eager",), degrees=(), exchanges=(), width=5120, grids=GRIDS):
    """All checks on `device` with the given implementations of the fused kernels; returns Checks.

    In one of several processes also every (S, U) of `degrees` against this process alone. `width`, a multiple of 128,
    is that of single kernels, `grids` are those of whole networks.

    Inductor is checked kernel by kernel only: compiling every shape of every network would take minutes.
    """
    checks = Checks()
    with torch.inference_mode():
        for name in kernels:
            _check_kernels(checks, name, device, width)
        _check_golden(checks, device)
        for grid in grids:
            _check_grid(checks, grid, device, [name for name in kernels if name != "inductor"])
        for name in kernels:
            _check_float8(checks, name, device, width)
            _check_attention_codes(checks, name, device, width)
        for backend in candidates_float8(device):
            _check_attention_float8(checks, backend, device)
            if torch.device(device).type == "cuda":
                _check_long_sums(checks, device, backend)
        for pair in degrees:
            for exchange in exchanges:
                _check_parallel(checks, pair, exchange, device, kernels[-1])
    return checks


def _check_float8(checks, name, device, width, tokens=77, batch=2):
    """8-bit kernels `name` against the eager contract, and the tensor cores' product against the codes' in fp32."""
    from tools.torch_reference.gpu import float8, float8_kernels

    generator = torch.Generator().manual_seed(0)

    def draw(*shape, dtype=torch.bfloat16):
        return torch.randn(*shape, generator=generator).to(device, dtype)

    x, y = draw(batch, tokens, width), draw(batch, tokens, width)
    gate, factor, shift = (draw(batch, width, dtype=torch.float32) for _ in range(3))
    layer = torch.nn.Linear(width, 512).to(device, torch.bfloat16)
    stream = draw(1, tokens, 512, dtype=torch.float32)
    gate_512 = draw(1, 512, dtype=torch.float32)
    gather = torch.randperm(tokens, generator=generator).to(device)
    for scaling in float8.SCALINGS:
        linear = float8.Float8Linear(layer, scaling)
        calls = {
            "update_norm": lambda k: k.update_norm(x.clone(), y.clone(), gate, factor, shift, x.dtype)[1].dequantised(),
            "update_norm of a switch": lambda k: k.update_norm(x.clone(), y.clone(), gate, factor, shift, x.dtype,
                                                               gather)[1].dequantised(),
            "norm": lambda k: k.norm(x.clone(), factor, shift, x.dtype).dequantised(),
            "norm after a switch": lambda k: k.update_norm(x.clone(), None, None, factor, shift, x.dtype, gather,
                                                           torch.float32)[1].dequantised(),
            "input_of_linear": lambda k: k.input_of_linear(x).dequantised(),
            "linear_of_parts": lambda k, f=linear: k.linear_of_parts((x[:1, :40], x[:1, 40:]), f, shift[0]),
            "linear_gelu": lambda k, f=linear: k.linear_gelu(k.input_of_linear(x), f).dequantised(),
        }
        for called, each in (("add_linear_of_parts", None), ("add_linear_of_parts, gated", gate_512)):
            calls[called] = lambda k, f=linear, g=each: _added(k, stream, g, (x[:1, :40], x[:1, 40:]), f, shift[0])
        calls["mean_of_input"] = lambda k: k.mean_of_input(k.input_of_linear(x))
        if scaling == "bound":
            calls["linear_codes"] = lambda k, f=linear: k.linear_codes(k.input_of_linear(x), f).dequantised()
        for call, function in calls.items():
            # Where fp32 rounds differently the code may differ by one: in less than one of 10^4. Products add up with
            # fewer bits ("product" below), and codes of a product take the step to the next code with that error.
            bound = 2e-2 if call in ("linear_gelu", "linear_codes") else 1e-2 if "of_parts" in call else 1e-3
            checks.compare(f"float8 {scaling} {name} {call}", lambda f=function, s=scaling: relative_error(
                f(float8_kernels.kernels(name, s)).float(), f(float8_kernels.kernels("eager", s)).float()), bound)
        quantised = float8.quantised(x, scaling)
        exact = quantised.dequantised() @ (linear.codes.float() * linear.scale).t() + layer.bias.float()
        checks.compare(f"float8 {scaling} product",
                       lambda f=linear, q=quantised, e=exact: relative_error(f(q), e), 1e-2)


def _check_attention_codes(checks, name, device, width, tokens=77, batch=2):
    """Codes of q, k and v by kernels `name` against the eager form, for every scale, with keys that share a vector."""
    generator, num_heads = torch.Generator().manual_seed(0), width // 128
    x = torch.randn(batch, tokens, width, generator=generator)
    x = (x + 3 * torch.randn(width, generator=generator)).to(device, torch.bfloat16)
    weight = (1 + 0.1 * torch.randn(width, generator=generator)).to(device)
    angles = torch.randn(tokens, width // num_heads // 2, generator=generator)
    tables = angles.cos().to(device), angles.sin().to(device)
    layer = torch.nn.Linear(width, 4 * 128).to(device, torch.bfloat16)
    for scale in attention_float8.SCALES:
        recipe = attention_float8.AttentionRecipe(scale=scale)
        actual = attention_float8.kernels(name, recipe, fused.kernels(name))
        expected = attention_float8.kernels("eager", recipe, fused.kernels("eager"))
        calls = {
            "query": lambda k: k.query(x.clone(), weight, tables, num_heads),
            "query, not rotated": lambda k: k.query(x.clone(), weight, (None, None), num_heads),
            "key": lambda k: k.key(x.clone(), weight, tables, num_heads, lambda mean: mean),
            "value": lambda k: k.value(x, layer, 4, lambda mean: mean)[:2],
            "mean of values": lambda k: (k.value(x, layer, 4, lambda mean: mean)[2][None], x.new_ones(1)),
        }
        for call, function in calls.items():
            def error(function=function, actual=actual, expected=expected):
                return relative_error(*((codes.float() * scales[:, None])
                                        for codes, scales in (function(actual), function(expected))))

            # As in _check_float8; the value's own product rounds to bf16 first.
            checks.compare(f"attention codes {scale} {name} {call}", error, 1e-3 if call != "value" else 1e-2)


def _check_attention_float8(checks, backend, device, num_heads=4, head_dim=128):
    """Attention on e4m3 codes against fp32 attention of the numbers they stand for, and sub-sequences against each."""
    generator = torch.Generator().manual_seed(0)
    runs = ((2, 300), (1, 217))
    tokens = sum(count * length for count, length in runs)
    recipe = attention_float8.AttentionRecipe(scale="head")
    numbers = [torch.randn(2, tokens, num_heads, head_dim, generator=generator).to(device) for _ in range(3)]
    codes, scales = zip(*(attention_float8.codes_of_heads(x, recipe) for x in numbers), strict=True)
    exact = [x.float() * scale[:, None] for x, scale in zip(codes, scales, strict=True)]
    attention, reference = attention_backend(backend).scaled(scales), attention_backend("math")

    def error(call):
        return relative_error(torch.cat(list(call(attention, *codes)), 1), torch.cat(list(call(reference, *exact)), 1))

    # Probabilities are rounded to e4m3 too.
    if backend != "fa3-varlen":
        checks.compare(f"attention of codes, {backend}", lambda: error(lambda a, *qkv: [a(*qkv)]), 5e-2)
    checks.compare(f"attention of codes in sub-sequences, {backend}",
                   lambda: error(lambda a, *qkv: a.sub_sequences(*qkv, runs)), 5e-2)


def _check_long_sums(checks, device, backend="fa3", tokens=19320, num_heads=2, head_dim=128, queries=256):
    """Values with a common part, over as many tokens as a sub-sequence of 720P has: centred, float8 sums hold."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, tokens, num_heads, head_dim, generator=generator).to(device) for _ in range(3))
    v = v + torch.randn(num_heads, head_dim, generator=generator).to(device)
    exact = attention_backend("math")(q[:, :queries], k, v)

    def error(mean):
        recipe = attention_float8.AttentionRecipe(scale="head")
        codes, scales = zip(*(attention_float8.codes_of_heads(x, recipe) for x in (q, k, v - mean)), strict=True)
        return relative_error(attention_backend(backend).scaled(scales)(*codes)[:, :queries].float() + mean, exact)

    plain = error(torch.zeros_like(v[:1, :1]))
    print(f"  {backend}: {tokens} values with a common part, not centred: error {plain:.2e}")
    checks.compare(f"attention of codes, {tokens} centred values, {backend}", lambda: error(v.mean(1, keepdim=True)),
                   1e-2)


def _check_parallel(checks, degrees, exchange, device, kernels):
    """A model shared by S x U processes against the same model on this one, fp32 and bf16."""
    from tools.torch_reference.gpu.parallel import ParallelSequence, create_mesh

    config = replace(CONFIG, num_heads=8)
    mesh = create_mesh(*degrees, torch.device(device).type)
    for dtype, name, bound, payload in ((torch.float32, "eager", FP32_ERROR, "stream"),
                                        (torch.bfloat16, kernels, BF16_ERROR, "fp16"),
                                        (torch.bfloat16, kernels, BF16_ERROR, "bf16"),
                                        (torch.bfloat16, kernels, E4M3_SWITCH_ERROR, "e4m3")):
        if payload == "e4m3" and degrees[0] == 1:
            continue
        sequence = ParallelSequence(config.sparse_ratio, 8, mesh, exchange, payload)
        for grid in GRIDS:
            def error(dtype=dtype, name=name, grid=grid, sequence=sequence):
                inputs = random_inputs(config, grid, device, batch=2)
                exact = random_model(config, device, torch.float32, kernels=fused.EagerKernels())
                shared = random_model(config, device, dtype, kernels=fused.kernels(name), sequence=sequence)
                return relative_error(shared(*inputs), exact(*inputs))

            checks.compare(f"{degrees[0]}x{degrees[1]} {exchange}, {str(dtype)[6:]} {name}, switch {payload}, {grid}",
                           error, bound)
    _check_parallel_float8(checks, config, ParallelSequence(config.sparse_ratio, 8, mesh, exchange), device, kernels)


def _check_parallel_float8(checks, config, sequence, device, kernels):
    """The 8-bit model shared by processes against the 8-bit model on this one: as near as 8 bits are to each other."""
    for grid in GRIDS:
        def error(grid=grid):
            inputs = random_inputs(config, grid, device)
            outputs = []
            for each in (sequence, None):
                model = random_model(config, device, torch.bfloat16, sequence=each)
                quantise(model, kernels, "bound", attention_float8.AttentionRecipe())
                outputs.append(model(*inputs))
            return relative_error(*outputs)

        checks.compare(f"{sequence.mesh.name} {sequence.exchange}, 8 bits {kernels}, {grid}", error, EIGHT_BIT_ERROR)


def _check_kernels(checks, name, device, width, tokens=77, batch=2):
    """One implementation in fp32 and bf16 against the eager contract on copies of the same inputs."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, dtype=torch.float32):
        return torch.randn(*shape, generator=generator).to(device, dtype)

    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 3e-3)):
        x, y = draw(batch, tokens, width, dtype=dtype), draw(batch, tokens, width, dtype=dtype)
        angles = draw(tokens, 64)
        calls = _calls(x, y, [draw(batch, width) for _ in range(3)], draw(width), (angles.cos(), angles.sin()))
        for call, function in calls.items():
            checks.compare(f"{name} {call}, {str(dtype)[6:]}",
                           lambda f=function: relative_error(f(fused.kernels(name)), f(fused.EagerKernels())), bound)
    _check_gelu(checks, name, draw, device)


def _calls(x, y, vectors, weight, tables):
    """{method: function of an implementation}; inputs are copied, as implementations may overwrite them."""
    gate, factor, shift = vectors
    gather = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0)).to(x.device)
    return {
        "norm": lambda k: k.norm(x.clone(), factor, shift, x.dtype),
        "update": lambda k: k.update(x.clone(), y.clone(), gate),
        "update_norm, x": lambda k: k.update_norm(x.clone(), y.clone(), gate, factor, shift, x.dtype)[0],
        "update_norm, n": lambda k: k.update_norm(x.clone(), y.clone(), None, factor, shift, x.dtype)[1],
        "update_norm of a switch, x": lambda k: k.update_norm(x.clone(), y.clone(), gate, factor, shift, x.dtype,
                                                              gather)[0],
        "update_norm of a switch, n": lambda k: k.update_norm(x.clone(), y.clone(), gate, factor, shift, x.dtype,
                                                              gather)[1],
        "update_gather": lambda k: k.update_gather(x.clone(), y.clone(), gate, gather, torch.bfloat16).float(),
        "norm after a switch, x": lambda k: k.update_norm(x.clone(), None, None, factor, shift, x.dtype, gather,
                                                          torch.float32)[0],
        "norm after a switch, n": lambda k: k.update_norm(x.clone(), None, None, factor, shift, x.dtype, gather,
                                                          torch.float32)[1],
        "rms_norm": lambda k: k.rms_norm(x.clone(), weight),
        "rms_norm_rotate": lambda k: k.rms_norm_rotate(x.clone(), weight, *tables),
    }


def _check_gelu(checks, name, draw, device, width=512):
    layer = torch.nn.Linear(width, 2 * width).to(device, torch.bfloat16)
    x = 2 * draw(1, 300, width, dtype=torch.bfloat16)
    exact = F.gelu(F.linear(x.double(), layer.weight.double(), layer.bias.double()), approximate="tanh")
    parts = x.split((117, 183), dim=1)
    product = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    checks.compare(f"{name} linear_of_parts, bfloat16", lambda: relative_error(
        fused.kernels(name).linear_of_parts(parts, layer), product), 5e-3)
    checks.compare(f"{name} linear_gelu, bfloat16", lambda: relative_error(
        fused.kernels(name).linear_gelu(x, layer), exact), 5e-3)
    stream, gate, shift = draw(1, 300, 2 * width), draw(1, 2 * width), draw(width)
    product = F.linear(x.double() + shift.double(), layer.weight.double(), layer.bias.double())
    for called, factor in (("add_linear_of_parts", None), ("add_linear_of_parts, gated", gate)):
        checks.compare(f"{name} {called}, bfloat16", lambda factor=factor: relative_error(
            _added(fused.kernels(name), stream, factor, parts, layer, shift),
            product if factor is None else product * gate[:, None].double()), 5e-3)


def _added(kernels, stream, gate, parts, layer, shift_C):
    """What add_linear_of_parts and the update that it leaves add to a stream."""
    x, owed = kernels.add_linear_of_parts(stream.clone(), gate, parts, layer, shift_C)
    return (x if owed is None else fused.EagerKernels().update(x, *owed)) - stream


def _check_golden(checks, device):
    """The original network's outputs, stored beside the tests."""
    from tools.torch_reference.loading import load

    for grid in ("2x8x8", "2x7x10"):
        def error(grid=grid):
            model = load(PackedDiT(GOLDEN_CONFIG), GOLDEN / "dit_weights.safetensors").to(device)
            with np.load(GOLDEN / f"dit_sparse_{grid}.npz") as arrays:
                inputs = [torch.from_numpy(arrays[name]).to(device) for name in ("x", "t", "text")]
                return relative_error(model(*inputs), torch.from_numpy(arrays["out"]).to(device))

        checks.compare(f"fp32 model against the original network, {grid}", error, FP32_ERROR)


def _check_grid(checks, grid, device, implementations):
    """Packed against padded: fp32 first, then bf16 in every implementation and residual dtype."""
    try:
        from tools.torch_reference.dit import OSPNextDiT
    except ImportError as error:
        print(f"  the padded reference cannot be imported ({error}); packed models are compared with fp32 eager")
        OSPNextDiT = None
    torch.manual_seed(0)
    exact = PackedDiT(CONFIG, kernels=fused.EagerKernels())
    for parameter in exact.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)
    exact.to(device)
    inputs = random_inputs(CONFIG, grid, device, batch=2)
    expected = exact(*inputs)
    if OSPNextDiT is not None:
        padded = OSPNextDiT(CONFIG).to(device)
        padded.load_state_dict(exact.state_dict())
        expected = padded(*inputs)
        checks.compare(f"fp32 packed against padded, {grid}", lambda: relative_error(exact(*inputs), expected),
                       FP32_ERROR)
        rounded = padded.bfloat16()
        checks.compare(f"bf16 padded against fp32 padded, {grid}", lambda: relative_error(rounded(*inputs), expected),
                       BF16_ERROR)
    for residual in (torch.bfloat16, torch.float32):
        for kernels in implementations:
            def error(kernels=kernels, residual=residual):
                return relative_error(_rounded(exact, residual, kernels, "default")(*inputs), expected)

            checks.compare(f"bf16 packed, {str(residual)[6:]} residual, {kernels}, {grid}", error, BF16_ERROR)
    for backend in candidates(device):
        checks.compare(f"bf16 packed, attention {backend}, {grid}", lambda b=backend: relative_error(
            _rounded(exact, torch.bfloat16, "eager", b)(*inputs), expected), BF16_ERROR)


def _rounded(exact, residual_dtype, kernels, backend):
    model = PackedDiT(replace(exact.config), dtype=torch.bfloat16, residual_dtype=residual_dtype,
                      kernels=fused.kernels(kernels), attention=attention_backend(backend))
    model.load_state_dict(exact.state_dict())
    return model.to(exact.head.head.weight.device)
