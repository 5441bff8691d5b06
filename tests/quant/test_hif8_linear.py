"""The quantised linear layer against torch_reference's independent recipe, in PyNative, compiled, under recompute."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor

from ospnext_ms.kernels import hif8_operators as kernels
from ospnext_ms.quant.hif8 import HiF8Linear
from tests.support.compare import relative_error
from tests.support.layers import Gradients, Weighted, normal, spread
from tools.torch_reference import hif8 as reference


def linear_twins(seed=0):
    """A HiF8Linear and its reference, 48 -> 40."""
    layer = HiF8Linear(48, 40)
    weight, bias = normal(40, 48, seed=seed, scale=0.1), normal(40, seed=seed + 1)
    layer.weight.set_data(Tensor(weight))
    layer.bias.set_data(Tensor(bias))
    twin = reference.HiF8Linear(48, 40)
    twin.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    return layer, twin


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


def test_largest_number_by_the_operators_of_ascend():
    amax = kernels.Amax()
    amax.on_host = None
    numbers = ([0, 0, 0], [-2, np.nan, 1], [1, -np.inf])
    for x in (normal(5, 7), *(np.array(row, np.float32) for row in numbers)):
        assert np.array_equal(amax(Tensor(x)).asnumpy(), kernels.Amax()(Tensor(x)).asnumpy()), x


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


@pytest.mark.parametrize("mode", ["pynative", "compiled", "recompute"])
def test_a_frozen_layer_computes_the_same_bits_from_a_quarter_of_the_bytes(mode):
    layer, _ = linear_twins()
    if mode == "recompute":
        layer.recompute()
    x, weight = Tensor(normal(2, 19, 48, seed=3)), Tensor(spread(2, 19, 40, seed=4))

    def value_and_gradient():
        step = ms.value_and_grad(Weighted(layer, weight), 0)
        value, dx = (step if mode == "pynative" else ms.jit(step))(x)
        return [array.asnumpy() for array in (layer(x), value, dx)]

    plain = value_and_gradient()
    layer.freeze()
    assert (layer.weight.dtype, layer.weight.shape, layer.weight.nbytes) == (ms.uint8, (40, 48), 40 * 48)
    assert not layer.weight.requires_grad
    assert all(np.array_equal(frozen, before) for frozen, before in zip(value_and_gradient(), plain, strict=True))


def test_a_weight_that_is_not_finite_is_not_frozen():
    layer, _ = linear_twins()
    layer.weight.set_data(Tensor(np.full((40, 48), np.nan, np.float32)))
    with pytest.raises(ValueError, match="largest absolute value is nan"):
        layer.freeze()
