"""Numerical checks of the fast model on the device at hand: against the padded reference, and kernel by kernel."""

import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ospnext_ms.models.config import DiTConfig
from tools.torch_reference.gpu import fused
from tools.torch_reference.gpu.attention_backends import attention_backend, candidates
from tools.torch_reference.gpu.packed import PackedDiT
from tools.torch_reference.gpu.settings import random_inputs, random_model
from tools.torch_reference.gpu.timing import relative_error

CONFIG = DiTConfig(dim=512, ffn_dim=1024, num_heads=4, num_layers=8, freq_dim=64, text_dim=64, text_len=32,
                   num_full_blocks=4)
GOLDEN_CONFIG = DiTConfig(dim=64, ffn_dim=128, num_heads=4, num_layers=8, freq_dim=64, text_dim=32, text_len=16,
                          num_full_blocks=4)
GOLDEN = Path(__file__).parents[3] / "tests" / "golden"
GRIDS = ((2, 8, 8), (3, 7, 10), (1, 6, 6))
BF16_ERROR, FP32_ERROR = 2e-2, 1e-5


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
        for pair in degrees:
            for exchange in exchanges:
                _check_parallel(checks, pair, exchange, device, kernels[-1])
    return checks


def _check_float8(checks, name, device, width, tokens=77, batch=2):
    """8-bit kernels `name` against the eager contract, and the tensor cores' product against the codes' in fp32."""
    from tools.torch_reference.gpu import float8

    generator = torch.Generator().manual_seed(0)

    def draw(*shape, dtype=torch.bfloat16):
        return torch.randn(*shape, generator=generator).to(device, dtype)

    x, y = draw(batch, tokens, width), draw(batch, tokens, width)
    gate, factor, shift = (draw(batch, width, dtype=torch.float32) for _ in range(3))
    layer = torch.nn.Linear(width, 512).to(device, torch.bfloat16)
    gather = torch.randperm(tokens, generator=generator).to(device)
    for scaling in float8.SCALINGS:
        linear = float8.Float8Linear(layer, scaling)
        calls = {
            "update_norm": lambda k: k.update_norm(x.clone(), y.clone(), gate, factor, shift, x.dtype)[1].dequantised(),
            "update_norm of a switch": lambda k: k.update_norm(x.clone(), y.clone(), gate, factor, shift, x.dtype,
                                                               gather)[1].dequantised(),
            "norm": lambda k: k.norm(x.clone(), factor, shift, x.dtype).dequantised(),
            "input_of_linear": lambda k: k.input_of_linear(x).dequantised(),
            "linear_gelu": lambda k, f=linear: k.linear_gelu(k.input_of_linear(x), f).dequantised(),
        }
        for call, function in calls.items():
            # Where fp32 rounds differently the code may differ by one: in less than one of 10^4.
            checks.compare(f"float8 {scaling} {name} {call}", lambda f=function, s=scaling: relative_error(
                f(float8.kernels(name, s)), f(float8.kernels("eager", s))), 1e-3)
        quantised = float8.quantised(x, scaling)
        exact = quantised.dequantised() @ (linear.codes.float() * linear.scale).t() + layer.bias.float()
        checks.compare(f"float8 {scaling} product",
                       lambda f=linear, q=quantised, e=exact: relative_error(f(q), e), 1e-2)


def _check_parallel(checks, degrees, exchange, device, kernels):
    """A model shared by S x U processes against the same model on this one, fp32 and bf16."""
    from tools.torch_reference.gpu.parallel import ParallelSequence, create_mesh

    config = replace(CONFIG, num_heads=8)
    sequence = ParallelSequence(config.sparse_ratio, 8, create_mesh(*degrees, torch.device(device).type), exchange)
    for dtype, name, bound in ((torch.float32, "eager", FP32_ERROR), (torch.bfloat16, kernels, BF16_ERROR)):
        for grid in GRIDS:
            def error(dtype=dtype, name=name, grid=grid):
                inputs = random_inputs(config, grid, device, batch=2)
                exact = random_model(config, device, torch.float32, kernels=fused.EagerKernels())
                shared = random_model(config, device, dtype, kernels=fused.kernels(name), sequence=sequence)
                return relative_error(shared(*inputs), exact(*inputs))

            checks.compare(f"{degrees[0]}x{degrees[1]} {exchange}, {str(dtype)[6:]} {name}, {grid}", error, bound)


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
