"""Quantised layers against torch_reference's independent recipe, in PyNative, compiled and under recompute."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from ospnext_ms.kernels import hif8_operators as kernels
from ospnext_ms.kernels.attention import Attention
from ospnext_ms.kernels.collectives import ProcessGroup
from ospnext_ms.models.config import DiTConfig, QuantConfig
from ospnext_ms.models.dit import OSPNextDiT
from ospnext_ms.models.sequence import PackedSequence
from ospnext_ms.quant.attention import AttentionInputs, HiF8Attention
from ospnext_ms.quant.hif8 import HiF8Linear
from ospnext_ms.quant.network import quantized_parts
from ospnext_ms.quant.recipe import HiF8Recipe, make_recipe
from tests.support.compare import relative_error
from tests.support.dit_twins import random_inputs, torch_twin
from tests.support.weights import set_weights
from tools.torch_reference import hif8 as reference

SMALL = DiTConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=1, freq_dim=32, text_dim=16, text_len=8, skiparse="full")
HIF8 = replace(SMALL, quant="hif8", quant_attention="hif8")


def normal(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def spread(*shape, seed=0):
    """Numbers of very different sizes, as gradients are: all bands of HiF8 occur after scaling."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * 10.0 ** rng.uniform(-7, 0, size=shape)).astype(np.float32)


def linear_twins(seed=0):
    """A HiF8Linear and its reference, 48 -> 40."""
    layer = HiF8Linear(48, 40)
    weight, bias = normal(40, 48, seed=seed, scale=0.1), normal(40, seed=seed + 1)
    layer.weight.set_data(Tensor(weight))
    layer.bias.set_data(Tensor(bias))
    twin = reference.HiF8Linear(48, 40)
    twin.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    return layer, twin


class Weighted(nn.Cell):
    """sum(net(*inputs) * weight)."""

    def __init__(self, net, weight):
        super().__init__()
        self.net = net
        self.weight = weight

    def construct(self, *inputs):
        return (self.net(*inputs) * self.weight).sum()


class Gradients(nn.Cell):
    """Value of a Cell, and its gradients by its inputs and parameters."""

    def __init__(self, net, num_inputs):
        super().__init__()
        self.gradient = ms.value_and_grad(net, tuple(range(num_inputs)), net.trainable_params() or None)

    def construct(self, *inputs):
        return self.gradient(*inputs)


@pytest.mark.parametrize("scale_max", [15.0, 224.0, 32768.0])
@pytest.mark.parametrize("x", [normal(37, 64, scale=3e-4), spread(37, 64), np.zeros((3, 4), np.float32)])
def test_quantised_operands_are_identical(x, scale_max):
    scale = kernels.Scale(scale_max)(Tensor(x))
    quantised = kernels.Quantize(False, ms.float32, scale_max)(Tensor(x), scale)
    expected, expected_scale = reference.quantise(torch.from_numpy(x), scale_max)
    assert np.array_equal(scale.asnumpy(), [expected_scale.item()])
    assert np.array_equal(quantised.asnumpy(), expected.numpy())


def test_scale_on_the_host_is_the_scale_of_operators():
    for x in (normal(5, 7), np.zeros(3, np.float32), np.array([1e-40], np.float32), np.array([1, np.inf], np.float32)):
        on_host = kernels.Scale(15.0)(Tensor(x)).asnumpy()
        by_operators = kernels.scale_for(kernels.Amax()(Tensor(x)), 15.0).asnumpy()
        assert np.array_equal(on_host, by_operators, equal_nan=True), x


@pytest.mark.parametrize("mode", ["pynative", "compiled", "recompute"])
def test_linear_and_its_gradients_agree_with_the_reference(mode):
    layer, twin = linear_twins()
    if mode == "recompute":
        layer.recompute()
    x, weight = normal(2, 19, 48, seed=3), spread(2, 19, 40, seed=4)
    x_torch = torch.from_numpy(x).requires_grad_()
    y_torch = twin(x_torch)
    (y_torch * torch.from_numpy(weight)).sum().backward()
    assert relative_error(layer(Tensor(x)).asnumpy(), y_torch.detach().numpy()) < 1e-5
    expected = [g.numpy() for g in (x_torch.grad, twin.weight.grad, twin.bias.grad)]
    step = Gradients(Weighted(layer, Tensor(weight)), 1)
    _, (dx, (dw, db)) = (step if mode == "pynative" else ms.jit(step))(Tensor(x))
    errors = [relative_error(a.asnumpy(), e) for a, e in zip((dx, dw, db), expected, strict=True)]
    assert max(errors) < 1e-5, errors


def test_linear_is_quantised_and_close_to_the_plain_one():
    layer, _ = linear_twins()
    x = normal(50, 48, seed=5)
    plain = x @ layer.weight.asnumpy().T + layer.bias.asnumpy()
    assert 0.005 < relative_error(layer(Tensor(x)).asnumpy(), plain) < 0.06


def test_weight_is_read_through_its_hook():
    layer, _ = linear_twins()
    x = Tensor(normal(4, 48))
    before = layer(x).asnumpy()
    layer.gather_weight = lambda weight: 2 * weight
    bias = layer.bias.asnumpy()
    assert relative_error(layer(x).asnumpy() - bias, 2 * (before - bias)) < 1e-6


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_makes_the_whole_output_so(bad):
    layer, _ = linear_twins()
    x = normal(4, 48)
    x[1, 2] = bad
    assert np.isnan(layer(Tensor(x)).asnumpy()).all()


@pytest.mark.parametrize("compiled", [False, True])
def test_quantised_attention_and_its_gradients_agree_with_the_reference(compiled):
    q, k, v = normal(2, 9, 2, 16), normal(2, 13, 2, 16, seed=1), normal(2, 13, 2, 16, seed=2)
    weight = normal(2, 9, 2, 16, seed=3)
    attention = HiF8Attention(Attention("blockwise"), AttentionInputs(HiF8Recipe(), ms.float32))

    step = Gradients(Weighted(attention, Tensor(weight)), 3)
    value, actual = (ms.jit(step) if compiled else step)(Tensor(q), Tensor(k), Tensor(v))
    leaves = [torch.from_numpy(x).transpose(1, 2).requires_grad_() for x in (q, k, v)]
    out = reference.hif8_attention(15.0)(*leaves).transpose(1, 2)
    expected = (out * torch.from_numpy(weight)).sum()
    gradients = torch.autograd.grad(expected, leaves)
    assert abs(value.asnumpy() / expected.item() - 1) < 1e-5
    errors = [relative_error(a.asnumpy(), g.transpose(1, 2).numpy()) for a, g in zip(actual, gradients, strict=True)]
    assert max(errors) < 1e-5, errors


def test_kernel_of_quantised_attention_gets_codes_and_a_scaled_q():
    q, k, v = normal(1, 5, 2, 8), normal(1, 6, 2, 8, seed=1), normal(1, 6, 2, 8, seed=2)
    inputs = AttentionInputs(HiF8Recipe(), ms.float32)(Tensor(q), Tensor(k), Tensor(v))
    (q8, q_scale), (k8, k_scale), (v8, v_scale) = (reference.quantise(torch.from_numpy(x), 15.0) for x in (q, k, v))
    assert np.array_equal(inputs[1].asnumpy(), k8.numpy())
    assert np.array_equal(inputs[2].asnumpy(), v8.numpy())
    assert relative_error(inputs[0].asnumpy(), (q8 / q_scale / k_scale).numpy()) < 1e-6
    assert relative_error(inputs[3].asnumpy(), [(1 / v_scale).item()]) < 1e-6


def test_transformer_agrees_with_the_reference():
    """A difference in the last digit flips a few roundings of later layers, so the bound is that of the quantisation
    itself: the two must be far closer to each other than to the network in fp32."""
    net, plain = torch_twin(SMALL, seed=3)
    quantised = OSPNextDiT(HIF8, **quantized_parts(HIF8))
    set_weights(quantised, {p.name: p.asnumpy() for p in net.get_parameters()})
    twin = reference.build(HIF8)
    twin.load_state_dict(plain.state_dict())
    x, t, text = random_inputs(HIF8, (2, 4, 4), 2, text_len=5)
    with torch.no_grad():
        expected = twin(*map(torch.from_numpy, (x, t, text))).numpy()
        unquantised = plain(*map(torch.from_numpy, (x, t, text))).numpy()
    actual = quantised(*map(Tensor, (x, t, text))).asnumpy()
    assert relative_error(actual, unquantised) > 0.005
    assert relative_error(actual, expected) < 0.1 * relative_error(actual, unquantised)


class WatchedSequence(PackedSequence):
    """Keeps the values it would have to send to other ranks."""

    def attend_full(self, attention, q_BNHD, k_BNHD, v_BNHD, grid, pattern):
        self.sent = v_BNHD.asnumpy()
        return super().attend_full(attention, q_BNHD, k_BNHD, v_BNHD, grid, pattern)


@pytest.mark.parametrize("ranks", [1, 2])
def test_scales_of_one_rank_are_not_applied_to_what_others_send(ranks):
    sequence = WatchedSequence(2)
    group = ProcessGroup(tuple(range(ranks)))
    config = replace(SMALL, quant_attention="hif8")
    net = OSPNextDiT(config, sequence=sequence, **quantized_parts(config, video_group=group))
    net(*map(Tensor, random_inputs(SMALL, (2, 4, 4), batch=1, text_len=8)))
    # HiF8 numbers of this size have at most 4 significant bits.
    mantissa, _ = np.frexp(sequence.sent)
    is_quantised = np.all(mantissa * 16 == np.rint(mantissa * 16))
    assert is_quantised == (ranks == 1)


def test_layers_of_the_recipe_are_quantised_and_no_others():
    net = OSPNextDiT(HIF8, **quantized_parts(HIF8))
    quantised = {name for name, cell in net.cells_and_names() if isinstance(cell, HiF8Linear)}
    attention = {f"blocks.0.{kind}.{name}" for kind in ("self_attn", "cross_attn") for name in "qkvo"}
    assert quantised == attention | {"blocks.0.ffn.0", "blocks.0.ffn.2"}
    assert {p.name for p in net.get_parameters()} == {p.name for p in OSPNextDiT(SMALL).get_parameters()}
    linears = {name for name, m in reference.build(HIF8).named_modules() if isinstance(m, reference.HiF8Linear)}
    assert linears == quantised


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: replace(SMALL, quant_config=QuantConfig(backend="emulate")), "neither dit.quant nor"),
        (lambda: QuantConfig(backend="gpu"), "quant_config.backend is 'gpu'"),
        (lambda: QuantConfig(scale_scope="data"), "scale_scope is 'data'; valid: 'local', 'global'"),
        (lambda: QuantConfig(scale_max_forward=1e6), "scale_max_forward is 1000000.0"),
        (lambda: make_recipe(QuantConfig(backend="native")), "'native' does not exist here: the device is CPU"),
        (lambda: quantized_parts(replace(HIF8, quant_config=QuantConfig(backend="native"))), "does not exist here"),
        (lambda: OSPNextDiT(replace(SMALL, quant="hif8")), "dit.quant is 'hif8', but no linear is given"),
        (lambda: OSPNextDiT(replace(SMALL, quant_attention="hif8")), "no cross_attention is given"),
        (lambda: reference.build(replace(HIF8, quant_config=QuantConfig(backend="native"))), "which PyTorch has not"),
        (lambda: reference.quantise(torch.tensor([1.0, torch.inf]), 15.0), "largest absolute value is inf"),
        (lambda: reference.hif8_attention(15.0)(None, None, None, attn_mask=1), "no padding"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
