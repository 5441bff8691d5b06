"""Rounding to HiF8 and its scales."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ospnext_ms.hif8_format import decode, encode
from ospnext_ms.kernels import hif8_operators as hif8
from tests.support.hif8_numbers import BF16, hard_numbers, random_bits, reference_codes, same


def test_native_quantise_scales_and_casts(monkeypatch):
    casts = []
    original = Tensor.astype
    monkeypatch.setattr(Tensor, "astype", lambda self, dtype: casts.append((dtype, self.asnumpy())) or (
        self if dtype == ms.hifloat8 else original(self, dtype)))
    hif8.Quantize(True, ms.float32).construct(Tensor([1.0, -3.0], ms.float32), Tensor([5.0], ms.float32))
    assert casts[-1][0] == ms.hifloat8
    assert np.array_equal(casts[-1][1], [5.0, -15.0])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("rounding", ["host operator", "arithmetic"])
def test_both_ways_of_rounding_a_tensor_are_exact(rounding, compiled):
    x = np.concatenate([BF16, hard_numbers(), random_bits(200_000, seed=1)])
    cell = hif8.RoundByArithmetic() if rounding == "arithmetic" else hif8.Quantize(False, ms.float32)
    inputs = (Tensor(x),) if rounding == "arithmetic" else (Tensor(x), Tensor([1.0], ms.float32))
    assert same((ms.jit(cell) if compiled else cell)(*inputs).asnumpy(), decode(reference_codes(x)))


@pytest.mark.parametrize("bound", [15.0, 224.0, 32768.0])
def test_arithmetic_rounding_of_bounded_numbers_is_exact(bound):
    x = np.concatenate([BF16, hard_numbers(), random_bits(200_000, seed=2)])
    x = x[np.abs(x) <= bound]
    assert same(hif8.RoundByArithmetic(bound)(Tensor(x)).asnumpy(), decode(reference_codes(x)))


@pytest.mark.slow
def test_arithmetic_rounding_of_every_mantissa_is_exact():
    mantissas = np.arange(2**23, dtype=np.uint32)
    cell = hif8.RoundByArithmetic()
    for exponent in (-127, *range(-25, 17), 128):
        x = (mantissas | np.uint32((exponent + 127) << 23)).view(np.float32)
        assert same(cell(Tensor(x)).asnumpy(), decode(encode(x))), exponent
