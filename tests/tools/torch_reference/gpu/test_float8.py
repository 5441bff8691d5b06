"""Float8 linears: codes and scales, placement, error against bf16, and Triton kernels against the eager contract."""

import importlib.util
import os
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference networks need PyTorch")

from safetensors.torch import save_file  # noqa: E402

from ospnext_ms import hif8_format  # noqa: E402
from ospnext_ms.storage import hif8_weights as storage  # noqa: E402
from tests.support.compare import relative_error  # noqa: E402
from tests.tools.torch_reference.gpu.parallel_worker import CONFIG as SMALL  # noqa: E402
from tools.torch_reference import hif8  # noqa: E402
from tools.torch_reference.gpu import float8, float8_kernels, fused  # noqa: E402
from tools.torch_reference.gpu.packed import PackedDiT  # noqa: E402
from tools.torch_reference.gpu.quantisation import block_linears, load_hif8, quantise  # noqa: E402
from tools.torch_reference.gpu.settings import random_inputs, random_model  # noqa: E402

CONFIG = replace(SMALL, dim=64, num_heads=4)
GRID = (2, 7, 6)


@pytest.mark.parametrize("scaling", float8.E4M3_SCALINGS)
def test_quantised_is_nearest_code_at_the_largest_scale(scaling):
    x = torch.randn(5, 7, 64) * torch.logspace(-3, 3, 7)[:, None]
    x[1, 2] = 0
    q = float8.quantised(x, scaling)
    assert q.codes.dtype == torch.float8_e4m3fn
    assert q.scale.shape == ((5, 7, 1) if scaling == "row" else ())
    codes = q.codes.float().abs()
    assert codes.amax() == 448
    if scaling == "row":
        assert sorted(codes.amax(-1).unique().tolist()) == [0, 448]
    # Three mantissa bits: half a step is 1/16 of the value, in the subnormal range 2^-10 of a code.
    error = (q.dequantised() - x).abs()
    assert torch.all(error <= x.abs() / 16 * 1.0001 + q.scale * 2**-10)
    assert torch.all(q.dequantised()[1, 2] == 0)
    assert torch.equal(float8.quantised(torch.zeros(2, 3), scaling).dequantised(), torch.zeros(2, 3))


@pytest.mark.parametrize("scaling", float8.SCALINGS)
def test_linear_multiplies_what_was_quantised(scaling):
    layer = torch.nn.Linear(64, 48).bfloat16()
    x = torch.randn(2, 16, 64).bfloat16()
    quantised = float8.quantised(x, scaling)
    linear = float8.Float8Linear(layer, scaling)
    weight = linear.codes.float() * linear.scale
    exact = quantised.dequantised() @ weight.t() + layer.bias.float()
    assert relative_error(linear(quantised).detach().float(), exact.detach()) < 4e-3
    assert 1e-3 < relative_error(weight, layer.weight.detach().float()) < 5e-2


@pytest.mark.parametrize("scaling", float8.SCALINGS)
def test_model_quantises_block_linears_and_nothing_else(scaling):
    base = random_model(CONFIG, "cpu", torch.bfloat16)
    model = base.with_layout(CONFIG.skiparse, CONFIG.num_full_blocks)
    quantise(model, "eager", scaling)
    inputs = random_inputs(CONFIG, GRID, "cpu", batch=2)
    with torch.inference_mode():
        assert 5e-3 < relative_error(model(*inputs), base(*inputs)) < 0.15
    quantised = [name for name, module in model.named_modules() if isinstance(module, float8.Float8Linear)]
    assert len(quantised) == 10 * CONFIG.num_layers
    assert all(name.startswith("blocks.") for name in quantised)
    plain = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert sorted(plain) == ["head.head", "text_embedding.0", "text_embedding.2", "time_embedding.0",
                             "time_embedding.2", "time_projection.1"]
    assert not any(isinstance(module, float8.Float8Linear) for module in base.modules())


@pytest.mark.parametrize("scaling", float8.SCALINGS)
def test_what_never_reaches_memory_is_not_rounded(scaling):
    """GELU, and with a scale a row the norm, are quantised from fp32, as the kernels have them."""
    kernels = float8_kernels.Float8Kernels(fused.EagerKernels(), scaling)
    x, (factor, shift) = torch.randn(1, 40, 64).bfloat16(), torch.randn(2, 1, 64)
    linear = float8.Float8Linear(torch.nn.Linear(64, 96).bfloat16(), scaling)
    y = linear(kernels.input_of_linear(x)).detach()
    # With a bound the product itself rounds to codes, from fp32.
    before = linear.exact(kernels.input_of_linear(x)).detach() if scaling == "bound" else y.float()
    exact = torch.nn.functional.gelu(before, approximate="tanh")
    norm = fused.EagerKernels().norm(x, factor, shift, torch.float32)
    hidden, normed = kernels.linear_gelu(kernels.input_of_linear(x), linear), kernels.norm(x, factor, shift, x.dtype)
    bound = linear.bound(kernels.input_of_linear(x)) if scaling == "bound" else None
    assert torch.equal(hidden.codes.float(), float8.quantised(exact, scaling, bound).codes.float())
    assert not torch.equal(hidden.codes.float(), float8.quantised(exact.bfloat16(), scaling, bound).codes.float())
    in_memory = norm if scaling in ("bound", "row") else norm.bfloat16()
    amax = float8.norm_bounds(factor, shift)[0] if scaling == "bound" else None
    assert torch.equal(normed.codes.float(), float8.quantised(in_memory, scaling, amax).codes.float())
    assert hidden.dtype == normed.dtype == torch.bfloat16


def test_hif8_is_the_recipe():
    """The emulation on any device against the reference of the recipe, whose numbers are fp32."""
    layer = hif8.HiF8Linear(64, 48)
    x = torch.randn(2, 16, 64).bfloat16()
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16())
        layer.bias.copy_(layer.bias.bfloat16())
        expected = layer(x.float())
        linear = float8.Float8Linear(layer.bfloat16(), "hif8")
        quantised = float8.quantised(x, "hif8")
        numbers, scale = hif8.quantise(x, 15.0)
        assert torch.equal(quantised.codes.float(), numbers)
        # Two roundings to fp32.
        assert relative_error(quantised.scale, 1 / scale) < 2.0**-22
        assert relative_error(linear(quantised).float(), expected) < 4e-3


@pytest.mark.parametrize("scaling", float8.SCALINGS)
def test_hif8_checkpoint_keeps_its_numbers(scaling, tmp_path):
    base = random_model(CONFIG, "cpu", torch.bfloat16)
    tensors, numbers = {}, {}
    for name, tensor in base.state_dict().items():
        tensors[name] = tensor
        if storage.QUANTISED.fullmatch(name):
            weight = tensor.float().numpy()
            factor = hif8_format.scale_of(np.abs(weight).max(), hif8_format.SCALE_MAX_FORWARD)
            tensors[name] = torch.from_numpy(hif8_format.encode(weight * factor))
            tensors[name + storage.SCALE_SUFFIX] = torch.tensor([1 / factor], dtype=torch.float32)
            numbers[name] = hif8_format.decode(tensors[name].numpy()) / factor
    save_file(tensors, tmp_path / "hif8.safetensors")
    model = load_hif8(PackedDiT(CONFIG, dtype=torch.bfloat16), tmp_path / "hif8.safetensors", scaling, "eager")
    loaded = {f"{path}.weight": getattr(parent, name) for parent, name, path in block_linears(model)}
    assert set(loaded) == set(numbers)
    for name, linear in loaded.items():
        assert relative_error(linear.codes.float() * linear.scale, numbers[name]) < 1e-4, name
    inputs = random_inputs(CONFIG, GRID, "cpu")
    with torch.inference_mode():
        assert 5e-3 < relative_error(model(*inputs), base(*inputs)) < 0.3
    del tensors["blocks.1.ffn.0.weight"]
    save_file(tensors, tmp_path / "hif8.safetensors")
    with pytest.raises(ValueError, match=r"left over: \['blocks.1.ffn.0.weight"):
        load_hif8(PackedDiT(CONFIG, dtype=torch.bfloat16), tmp_path / "hif8.safetensors", scaling, "eager")


def test_other_scalings_are_refused():
    with pytest.raises(ValueError, match="scaling is 'block'; valid: bound, tensor, row"):
        float8_kernels.kernels("eager", "block")
    with pytest.raises(ValueError, match="the model are torch.float32; valid: torch.bfloat16, torch.float16"):
        quantise(PackedDiT(CONFIG), "eager", "row")


INTERPRETED = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None,
    reason="needs Triton and TRITON_INTERPRET=1 from the start: its interpreter replaces functions at import")


class _Fixed:
    """A layer whose output is given: what is tested is what becomes of it."""

    scale = torch.ones(1, 1)

    def __init__(self, y, x):
        self.y, self.x = y, x

    def __call__(self, x, bias):
        assert x is self.x
        return self.y


@INTERPRETED
@pytest.mark.parametrize("scaling", float8.E4M3_SCALINGS)
@pytest.mark.parametrize("shape", [(1, 7, 48), (2, 5, 64)])
def test_triton_kernels_keep_the_contract(scaling, shape):
    actual = float8_kernels.TritonFloat8Kernels(fused.EagerKernels(), scaling)
    expected = float8_kernels.Float8Kernels(fused.EagerKernels(), scaling)
    batch, _, width = shape
    x, y = torch.randn(shape), torch.randn(shape)
    gate, factor, shift = (torch.randn(batch, width) for _ in range(3))
    quantised = expected.input_of_linear(x)
    linear = _Fixed(torch.randn(batch, shape[1], 32), quantised)
    calls = {
        "norm": lambda k: (x.clone(), k.norm(x.clone(), factor, shift, torch.float16)),
        "update_norm": lambda k: k.update_norm(x.clone(), y.clone(), gate, factor, shift, torch.float16),
        "switch": lambda k: k.update_norm(x.clone(), y.clone(), gate, factor, shift, torch.float16,
                                          torch.arange(x.shape[1]).flip(0)),
        "ungated": lambda k: k.update_norm(x.clone(), y.clone(), None, factor[:1], shift[:1], torch.float16),
        "input_of_linear": lambda k: (x, k.input_of_linear(x)),
        "parts": lambda k: (x, k._input_of_parts([x[:1, :3].contiguous(), x[:1, 3:].contiguous()])),
        "switched": lambda k: k.update_norm(x.half(), None, None, factor, shift, torch.float16,
                                            torch.arange(x.shape[1]).flip(0), torch.float32),
    }
    if scaling != "bound":
        calls["linear_gelu"] = lambda k: (x, k.linear_gelu(quantised, linear))
    for name, call in calls.items():
        with torch.inference_mode():
            (x_actual, q_actual), (x_expected, q_expected) = call(actual), call(expected)
        assert relative_error(x_actual, x_expected) < 1e-6, name
        assert q_actual.codes.dtype == q_expected.codes.dtype
        assert q_actual.scale.shape == q_expected.scale.shape
        assert relative_error(q_actual.scale, q_expected.scale) < 1e-6, name
        actual_codes, expected_codes = q_actual.codes.float(), q_expected.codes.float()
        # Triton's interpreter forgets the carry into the exponent where GPUs round up to a power of two.
        is_power = torch.frexp(expected_codes)[0].abs() == 0.5
        repaired = torch.where(is_power & (actual_codes * 2 == expected_codes), expected_codes, actual_codes)
        assert relative_error(repaired * q_actual.scale, q_expected.dequantised()) < 1e-3, name


@INTERPRETED
@pytest.mark.parametrize("scaling", ["row", "bound"])
def test_model_with_triton_kernels(scaling):
    config = replace(CONFIG, num_layers=4, num_full_blocks=0)
    base = random_model(config, "cpu", torch.bfloat16)
    inputs = random_inputs(config, (1, 3, 4), "cpu")
    outputs = []
    for kernels in ("eager", "triton"):
        model = PackedDiT(config, dtype=torch.bfloat16)
        model.load_state_dict(base.state_dict())
        quantise(model, kernels, scaling)
        with torch.inference_mode():
            outputs.append(model(*inputs))
            exact = base(*inputs)
    assert relative_error(outputs[1], exact) < 0.2
    assert relative_error(outputs[1], outputs[0]) < 0.2


@INTERPRETED
def test_means_and_products_of_one_vector():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 331, 48, generator=generator)
    actual, expected = (float8_kernels.kernels(name, "bound") for name in ("triton", "eager"))
    quantised = expected.input_of_linear(x)
    layer = float8.Float8Linear(torch.nn.Linear(48, 37), "bound")
    mean = expected.mean_of_input(quantised)
    assert relative_error(actual.mean_of_input(quantised), mean) < 1e-5
    assert relative_error(actual.of_constant(layer, mean), expected.of_constant(layer, mean)) < 1e-5
