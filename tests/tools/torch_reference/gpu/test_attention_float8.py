"""8-bit operands of attention: bounds hold, centring is exact, codes are nearest, kernels keep the contract."""

import importlib.util
import os
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="the reference networks need PyTorch")

from tests.support.compare import relative_error  # noqa: E402
from tests.tools.torch_reference.gpu.parallel_worker import CONFIG as SMALL  # noqa: E402
from tools.torch_reference import hif8  # noqa: E402
from tools.torch_reference.gpu import attention_float8, float8, float8_kernels, fused  # noqa: E402
from tools.torch_reference.gpu.attention_backends import SDPA, attention_backend  # noqa: E402
from tools.torch_reference.gpu.attention_float8 import AttentionRecipe  # noqa: E402
from tools.torch_reference.gpu.quantisation import quantise  # noqa: E402
from tools.torch_reference.gpu.settings import random_inputs, random_model  # noqa: E402

CONFIG = replace(SMALL, dim=64, num_heads=4)
HEADS = 4


def _inputs(tokens=37, width=64, common=3.0, seed=0):
    """Projections with a vector that all tokens share, norm weights and rotary tables."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, tokens, width, generator=generator) + common * torch.randn(width, generator=generator)
    weight = 1 + 0.3 * torch.randn(width, generator=generator)
    angles = torch.randn(tokens, width // HEADS // 2, generator=generator)
    return x, weight, (angles.cos(), angles.sin())


def _numbers(codes, scale):
    return codes.float() * scale[:, None]


@pytest.mark.parametrize("hadamard", [False, True])
@pytest.mark.parametrize("scale", attention_float8.SCALES)
def test_codes_are_what_they_stand_for(scale, hadamard):
    x, weight, tables = _inputs()
    kernels = attention_float8.AttentionKernels(fused.EagerKernels(), AttentionRecipe(
        scale=scale, centre_keys=False, hadamard=hadamard))
    exact = attention_float8.normed_and_rotated(x, weight, *tables).unflatten(-1, (HEADS, -1))
    if hadamard:
        exact = exact @ attention_float8.hadamard_matrix(exact.shape[-1], "cpu")
    codes, scales = kernels.query(x, weight, tables, HEADS)
    assert codes.dtype == torch.float8_e4m3fn
    error = (_numbers(codes, scales) - exact).abs()
    assert torch.all(error <= exact.abs() / 16 * 1.0001 + scales[:, None] * 2**-10)
    largest = codes.float().abs().amax((0, 1, 3))
    assert torch.all(largest == 448) if scale == "head" else largest.max() <= 448
    assert len(scales.unique()) == (1 if scale == "tensor" else HEADS)


def test_bounds_hold_and_can_be_reached():
    """One channel alone reaches the bound of its head; of a norm, of a projection and of centred keys alike."""
    weight = 1 + torch.rand(64)
    x = torch.zeros(1, 1, 64)
    x[..., 17] = 100.0
    bound = attention_float8.bound_of_heads(weight, HEADS, centred=False)
    reached = attention_float8.normed_and_rotated(x, weight, None, None).abs().unflatten(-1, (HEADS, -1))
    reached = reached.amax((0, 1, 3))
    assert torch.all(reached <= bound * 1.0001)
    assert reached[1] > 0.5 * bound[1]
    factor, shift = torch.randn(2, 3, 64)
    amax, length = float8.norm_bounds(factor, shift)
    x = torch.randn(3, 500, 64) * torch.logspace(-3, 3, 64)
    normed = fused.EagerKernels().norm(x, factor, shift, torch.float32)
    assert 0.3 * amax < normed.abs().amax() <= amax
    assert 0.3 * length < normed.norm(dim=-1).amax() <= length
    layer = float8.Float8Linear(torch.nn.Linear(64, 48).bfloat16(), "bound")
    quantised = float8.quantised(normed, "bound", amax, length)
    assert layer.exact(quantised).abs().amax() <= layer.bound(quantised)


@pytest.mark.parametrize("recipe", [AttentionRecipe(), AttentionRecipe(scale="head", hadamard=True)])
def test_common_part_of_keys_changes_no_probability_but_is_not_rounded(recipe):
    x, weight, tables = _inputs(common=20.0)
    # Without rotation everything common stays common.
    tables = torch.ones_like(tables[0]), torch.zeros_like(tables[1])
    keys = attention_float8.normed_and_rotated(x, weight, *tables).unflatten(-1, (HEADS, -1))
    queries = torch.randn(2, 37, HEADS, 16)
    values = torch.randn(2, 37, HEADS, 16)
    exact = SDPA()(queries, keys, values)
    errors = {}
    for centre in (False, True):
        kernels = attention_float8.AttentionKernels(fused.EagerKernels(), replace(recipe, centre_keys=centre))
        k = _numbers(*kernels.key(x, weight, tables, HEADS, lambda mean: mean))
        turned = queries @ attention_float8.hadamard_matrix(16, "cpu") if recipe.hadamard else queries
        errors[centre] = relative_error(SDPA()(turned, k, values), exact)
    assert errors[True] < 0.5 * errors[False]


@pytest.mark.parametrize("scaling", [None, "bound", "row"])
def test_mean_of_values_leaves_and_comes_back(scaling):
    torch.manual_seed(0)
    layer, output = torch.nn.Linear(64, 64).bfloat16(), torch.nn.Linear(64, 32).bfloat16()
    with torch.no_grad():
        layer.bias.normal_(std=10.0)
    x = torch.randn(2, 40, 64).bfloat16()
    kernels = others = fused.EagerKernels()
    if scaling:
        others = float8_kernels.Float8Kernels(kernels, scaling)
        layer, output = float8.Float8Linear(layer, scaling), float8.Float8Linear(output, scaling)
    kernels = attention_float8.AttentionKernels(others, AttentionRecipe())
    with torch.inference_mode():
        operand = others.input_of_linear(x)
        plain, plain_scale, none = kernels.value(operand, layer, HEADS)
        codes, scale, mean = kernels.value(operand, layer, HEADS, lambda mean: mean)
        exact = others.linear(operand, layer).float()
        assert none is None
        centred = _numbers(codes, scale).flatten(2)
        assert centred.mean().abs() < 0.1 * exact.abs().mean()
        plain = _numbers(plain, plain_scale).flatten(2)
        assert relative_error(centred + mean, exact) < 0.3 * relative_error(plain, exact)
        shifted = others.linear_of_parts([centred.bfloat16()], output, mean)
        whole = others.linear_of_parts([(centred + mean).bfloat16()], output)
        assert relative_error(shifted.float(), whole.float()) < 3e-2


def test_hif8_recipe_is_that_of_the_reference():
    q, k, v = torch.randn(3, 2, 11, HEADS, 16)
    codes = [attention_float8.codes_of_heads(x, attention_float8.HIF8_RECIPE) for x in (q, k, v)]
    scales = tuple(scale for _, scale in codes)
    out = attention_backend("default").scaled(scales)(*(numbers for numbers, _ in codes))
    expected = hif8.hif8_attention(15.0)(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert relative_error(out, expected) < 1e-5
    assert relative_error(out, SDPA()(q, k, v)) > 1e-2


@pytest.mark.parametrize("recipe", [AttentionRecipe(), AttentionRecipe(scale="head"), AttentionRecipe(hadamard=True),
                                    attention_float8.HIF8_RECIPE])
@pytest.mark.parametrize("scaling", [None, "bound"])
def test_model_is_near_bf16_and_not_equal(recipe, scaling):
    base = random_model(CONFIG, "cpu", torch.bfloat16)
    inputs = random_inputs(CONFIG, (2, 7, 6), "cpu", batch=2)
    model = quantise(base.with_layout(CONFIG.skiparse, CONFIG.num_full_blocks), "eager", scaling, recipe)
    with torch.inference_mode():
        assert 5e-3 < relative_error(model(*inputs), base(*inputs)) < 0.2


def test_blocks_at_either_end_stay_as_they_are():
    base = random_model(CONFIG, "cpu", torch.bfloat16)
    inputs = random_inputs(CONFIG, (1, 7, 6), "cpu")
    errors = []
    for keep in (0, 2):
        model = quantise(base.with_layout(CONFIG.skiparse, CONFIG.num_full_blocks), "eager", "bound", AttentionRecipe(),
                         keep_bf16=keep)
        kept = [not isinstance(block.ffn[0], float8.Float8Linear) for block in model.blocks]
        assert kept == [i < keep or i >= len(kept) - keep for i in range(len(kept))]
        with torch.inference_mode():
            errors.append(relative_error(model(*inputs), base(*inputs)))
    assert errors[1] < errors[0]
    with pytest.raises(ValueError, match="keep_bf16 is 4; valid for 8 blocks: 0 to 3"):
        quantise(random_model(CONFIG, "cpu", torch.bfloat16), "eager", "bound", keep_bf16=4)


def test_recipes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="number_format is 'e5m2', scale 'bound'; valid: 'e4m3', 'hif8'"):
        AttentionRecipe("e5m2")
    with pytest.raises(ValueError, match="scale is 'bound' for 'hif8'; valid: head, tensor"):
        AttentionRecipe("hif8")


INTERPRETED = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None,
    reason="needs Triton and TRITON_INTERPRET=1 from the start: its interpreter replaces functions at import")


@INTERPRETED
@pytest.mark.parametrize("scale", attention_float8.SCALES)
@pytest.mark.parametrize("heads", [3, 4])
def test_triton_kernels_keep_the_contract(scale, heads):
    tokens, width = 67, heads * 16
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, tokens, width, generator=generator) + 3 * torch.randn(width, generator=generator)
    weight = torch.randn(width, generator=generator)
    angles = torch.randn(tokens, 8, generator=generator)
    recipe = AttentionRecipe(scale=scale)
    expected, actual = (attention_float8.kernels(name, recipe, fused.EagerKernels()) for name in ("eager", "triton"))
    assert isinstance(actual, attention_float8.TritonAttentionKernels)
    for tables in ((angles.cos(), angles.sin()), (None, None)):
        calls = {"query": lambda k, t=tables: k.query(x.clone(), weight, t, heads),
                 "key": lambda k, t=tables: k.key(x.clone(), weight, t, heads, lambda mean: mean)}
        for name, call in calls.items():
            (codes, scales), (expected_codes, expected_scales) = call(actual), call(expected)
            assert codes.shape == expected_codes.shape == (2, tokens, heads, 16)
            assert relative_error(scales, expected_scales) < 1e-6, name
            # Triton's interpreter forgets the carry into the exponent where GPUs round up to a power of two.
            codes, expected_codes = codes.float(), expected_codes.float()
            is_power = torch.frexp(expected_codes)[0].abs() == 0.5
            repaired = torch.where(is_power & (codes * 2 == expected_codes), expected_codes, codes)
            assert relative_error(_numbers(repaired, scales), _numbers(expected_codes, scales)) < 2e-3, name
