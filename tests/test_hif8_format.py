"""The HiF8 numbers against the table of the format and the independent package en_dtypes."""

import csv

import en_dtypes
import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor

from ospnext_ms import hif8_format as hif8
from ospnext_ms.kernels.hif8_operators import Quantize, RoundByArithmetic
from ospnext_ms.quant.hif8 import decode, encode, quantize_dequantize
from tests.support.paths import FACTS
from tools.torch_reference.hif8 import round_to_hif8

VALUES = FACTS / "hif8_values.csv"
BF16 = (np.arange(65536, dtype=np.uint32) << 16).view(np.float32)
RANDOM_NUMBERS = 10_000_000


def reference_codes(x):
    with np.errstate(all="ignore"):
        return x.astype(en_dtypes.hifloat8).view(np.uint8)


def random_bits(count, seed):
    """fp32 numbers of random bits: every exponent, NaNs and denormals among them."""
    return np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32).view(np.float32)


def hard_numbers():
    """Every HiF8 number, every tie between two of them, and the fp32 numbers beside all of these."""
    values = np.sort(hif8.values()[np.isfinite(hif8.values())])
    centres = np.concatenate([values, (values[1:] + values[:-1]) / 2, [-40960, 40960, 2.0**-23, -(2.0**-23)]])
    centres = centres.astype(np.float32)
    beside = [np.nextafter(centres, np.float32(side)) for side in (-np.inf, np.inf)]
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)
    return np.concatenate([centres, *beside, odd])


def same(a, b):
    return np.array_equal(a, b, equal_nan=True)


def test_all_codes_decode_as_the_table_and_as_en_dtypes():
    with VALUES.open() as file:
        table = np.array([float(row["value"]) for row in csv.DictReader(file)], np.float32)
    codes = np.arange(256, dtype=np.uint8)
    assert same(decode(codes), table)
    assert same(decode(codes), codes.view(en_dtypes.hifloat8).astype(np.float32))
    assert same(decode(Tensor(codes)).asnumpy(), table)


def test_values_are_their_own_codes():
    codes = np.arange(256, dtype=np.uint8)
    assert np.array_equal(encode(decode(codes)), codes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_bf16_numbers_encode_as_en_dtypes(dtype):
    assert np.array_equal(encode(BF16.astype(dtype)), reference_codes(BF16))


def test_bf16_tensors_encode_as_arrays():
    tensor = Tensor(BF16).astype(ms.bfloat16)
    assert np.array_equal(encode(tensor).asnumpy(), encode(BF16))


def test_ten_million_random_numbers_encode_as_en_dtypes():
    x = random_bits(RANDOM_NUMBERS, seed=0)
    assert np.array_equal(encode(x), reference_codes(x))


def test_ties_go_away_from_zero():
    x = np.array([2.0**-23, 1.0625, 17.0, -17.0, 1.5 * 2.0**-20, 40960, 40959.996], np.float32)
    assert np.array_equal(decode(encode(x)), [2.0**-22, 1.125, 16.0, -16.0, 2.0**-19, np.inf, 32768])


def test_a_float64_number_just_below_a_tie_goes_down():
    assert decode(encode(np.array([1.0625 - 1e-12]))) == 1.0


def test_negative_zero_and_underflow_become_the_one_zero():
    assert np.array_equal(encode(np.array([-0.0, -1e-10, 1e-45], np.float32)), [0, 0, 0])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("rounding", ["host operator", "arithmetic"])
def test_both_ways_of_rounding_a_tensor_are_exact(rounding, compiled):
    x = np.concatenate([BF16, hard_numbers(), random_bits(200_000, seed=1)])
    cell = RoundByArithmetic() if rounding == "arithmetic" else Quantize(False, ms.float32)
    inputs = (Tensor(x),) if rounding == "arithmetic" else (Tensor(x), Tensor([1.0], ms.float32))
    assert same((ms.jit(cell) if compiled else cell)(*inputs).asnumpy(), decode(reference_codes(x)))


@pytest.mark.parametrize("bound", [15.0, 224.0, 32768.0])
def test_arithmetic_rounding_of_bounded_numbers_is_exact(bound):
    x = np.concatenate([BF16, hard_numbers(), random_bits(200_000, seed=2)])
    x = x[np.abs(x) <= bound]
    assert same(RoundByArithmetic(bound)(Tensor(x)).asnumpy(), decode(reference_codes(x)))


@pytest.mark.slow
def test_arithmetic_rounding_of_every_mantissa_is_exact():
    mantissas = np.arange(2**23, dtype=np.uint32)
    cell = RoundByArithmetic()
    for exponent in (-127, *range(-25, 17), 128):
        x = (mantissas | np.uint32((exponent + 127) << 23)).view(np.float32)
        assert same(cell(Tensor(x)).asnumpy(), hif8.values()[encode(x)]), exponent


def test_torch_reference_rounds_the_same():
    x = np.concatenate([BF16, hard_numbers(), random_bits(1_000_000, seed=3)])
    assert same(round_to_hif8(torch.from_numpy(x)).numpy(), decode(reference_codes(x)))


def test_mindspore_on_the_host_truncates():
    """mindspore.Tensor(array, hifloat8) cuts off where the format rounds to nearest, and is infinite from above 32768:
    never used to quantise. If this fails, the two have come closer."""
    codes = Tensor(BF16, ms.hifloat8).view(ms.uint8).asnumpy()
    differs = codes != encode(BF16)
    assert differs.sum() == 5054
    values, x = np.abs(hif8.values()[codes[differs]]), np.abs(BF16[differs])
    assert np.all((values < x) | ((x > 32768) & np.isinf(values)))


@pytest.mark.parametrize("x", [0.3, -1.4, 21.0, 0.75 * 2.0**-22, 1e-7, 1000.0])
def test_stochastic_rounding_is_unbiased_and_goes_to_neighbours(x):
    count = 40_000
    rounded = decode(encode(np.full(count, x, np.float32), "stochastic", seed=5))
    below, above = np.unique(rounded)
    values = np.sort(hif8.values()[np.isfinite(hif8.values())])
    assert np.searchsorted(values, above) == np.searchsorted(values, below) + 1
    assert abs(rounded.mean() - x) < 4.5 * (above - below) / 2 / np.sqrt(count)


def test_stochastic_rounding_follows_its_seed_and_keeps_what_is_exact():
    x = random_bits(50_000, seed=4)
    assert np.array_equal(encode(x, "stochastic", seed=1), encode(x, "stochastic", seed=1))
    assert not np.array_equal(encode(x, "stochastic", seed=1), encode(x, "stochastic", seed=2))
    codes = np.arange(256, dtype=np.uint8)
    assert np.array_equal(encode(decode(codes), "stochastic", seed=1), codes)
    beyond = np.array([np.nan, np.inf, -np.inf, 1e9, 50000, -50000, 34000], np.float32)
    assert np.array_equal(encode(beyond, "stochastic", seed=1), encode(beyond))


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
    monkeypatch.setattr("ospnext_ms.quant.hif8.on_ascend", lambda: True)
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
