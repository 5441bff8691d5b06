"""HiF8 of tensors and arrays: encoding, decoding and quantising with one scale."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ospnext_ms import hif8_format
from ospnext_ms.quant.hif8 import decode, encode, quantize_dequantize
from tests.support.hif8_numbers import BF16, same


def test_tensors_and_arrays_decode_alike():
    codes = np.arange(256, dtype=np.uint8)
    assert same(decode(codes), hif8_format.decode(codes))
    assert same(decode(Tensor(codes)).asnumpy(), hif8_format.decode(codes))


def test_bf16_tensors_encode_as_arrays():
    tensor = Tensor(BF16).astype(ms.bfloat16)
    assert np.array_equal(encode(tensor).asnumpy(), encode(BF16))


def test_mindspore_on_the_host_truncates():
    """mindspore.Tensor(array, hifloat8) cuts off where the format rounds to nearest, and is infinite from above 32768:
    never used to quantise. If this fails, the two have come closer."""
    codes = Tensor(BF16, ms.hifloat8).view(ms.uint8).asnumpy()
    differs = codes != encode(BF16)
    assert differs.sum() == 5054
    values, x = np.abs(hif8_format.values()[codes[differs]]), np.abs(BF16[differs])
    assert np.all((values < x) | ((x > 32768) & np.isinf(values)))


@pytest.mark.parametrize("scale_max", [None, 15.0, 224.0])
@pytest.mark.parametrize("rounding", [{}, {"rounding": "stochastic", "seed": 3}])
def test_tensors_and_arrays_quantise_alike(scale_max, rounding):
    x = np.random.default_rng(0).normal(size=(33, 70)).astype(np.float32) * 1e-3
    expected = quantize_dequantize(x, scale_max, **rounding)
    assert np.array_equal(quantize_dequantize(Tensor(x), scale_max, **rounding).asnumpy(), expected)
    assert expected.dtype == np.float32
    assert 0.01 < np.linalg.norm(expected - x) / np.linalg.norm(x) < 0.2


@pytest.mark.parametrize("scale_max", [None, 15.0])
def test_device_operators_give_the_hosts_numbers(monkeypatch, scale_max):
    """On CPU a tensor goes through NumPy; the operators for other devices run here too."""
    x = np.random.default_rng(3).standard_normal((64, 65)).astype(np.float32)
    expected = quantize_dequantize(Tensor(x), scale_max)
    monkeypatch.setattr("ospnext_ms.kernels.hif8_operators.on_ascend", lambda: True)
    assert np.array_equal(quantize_dequantize(Tensor(x), scale_max).asnumpy(), expected.asnumpy())


def test_scaling_uses_the_band_of_three_mantissa_bits():
    x = np.random.default_rng(1).uniform(0.01, 1, 10_000).astype(np.float32) * 7e-5
    error = np.abs(quantize_dequantize(x, 15.0) / x - 1)
    assert error.max() <= 1 / 16 * 1.001
    assert np.abs(quantize_dequantize(x, 32768.0) / x - 1).max() > 0.19


def test_scaling_twice_changes_nothing():
    x = np.random.default_rng(2).normal(size=5000).astype(np.float32)
    once = quantize_dequantize(x, 15.0)
    assert np.allclose(quantize_dequantize(once, 15.0), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", [np.asarray, Tensor])
def test_zero_stays_zero_and_tiny_numbers_are_scaled(make):
    zeros = np.zeros((3, 4), np.float32)
    assert not np.asarray(quantize_dequantize(make(zeros), 15.0)).any()
    tiny = np.array([1e-36, -2e-37, 0], np.float32)
    assert np.allclose(np.asarray(quantize_dequantize(make(tiny), 15.0)), tiny, rtol=0.07, atol=0)


@pytest.mark.parametrize("make", [np.asarray, Tensor])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_cannot_be_scaled(make, bad):
    with pytest.raises(ValueError, match=r"largest absolute value is (nan|inf)"):
        quantize_dequantize(make(np.array([1.0, bad], np.float32)), 15.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: encode(np.array([1, 2])), "not int64"),
        (lambda: encode(np.ones(2), "up"), "rounding is 'up'; valid: 'nearest', 'stochastic'"),
        (lambda: encode(np.ones(2), "stochastic"), "seed is None"),
        (lambda: encode(np.ones(2), seed=3), "seed is 3 and rounding 'nearest'"),
        (lambda: decode(np.ones(2)), "dtype float64; expected uint8"),
        (lambda: decode(Tensor([1.0])), "expected UInt8"),
        (lambda: quantize_dequantize(np.ones(2), 40000.0), "scale_max is 40000.0"),
        (lambda: quantize_dequantize(np.ones(2), 0.0), "scale_max is 0.0"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
