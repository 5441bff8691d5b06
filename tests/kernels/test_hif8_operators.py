"""What the HiF8 kernels hand to Ascend's operators, and how the probe judges them; by substituting the operators."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ospnext_ms.hif8_format import decode, encode, round_nearest
from ospnext_ms.kernels import hif8_operators as hif8
from tests.support.hif8_numbers import BF16, hard_numbers, random_bits, reference_codes, same


class FakeTensor:
    """Stands for a hifloat8 tensor, which the CPU cannot hold."""

    def __init__(self, values, dtype=ms.hifloat8):
        self.values, self.dtype = values, dtype

    def swapaxes(self, a, b):
        return FakeTensor(self.values.swapaxes(a, b), self.dtype)

    def astype(self, dtype):
        return Tensor(self.values).astype(dtype)


@pytest.fixture
def ascend_950(monkeypatch):
    """Native operators by their contract: a cast that rounds, and QuantMatmul; `calls` holds the latter's arguments."""
    calls = []

    def quantize(self, x, scale):
        assert self.native
        return FakeTensor(round_nearest(x.asnumpy() * scale.asnumpy()))

    def quant_matmul(a, b, scale, *, pertoken_scale, output_dtype):
        calls.append((a, b, scale, pertoken_scale, output_dtype))
        return Tensor(a.values @ b.values * scale.asnumpy() * pertoken_scale.asnumpy()).astype(output_dtype)

    emulated = hif8.Quantize.construct
    monkeypatch.setattr(hif8.Quantize, "__call__",
                        lambda self, x, scale: (quantize if self.native else emulated)(self, x, scale))
    monkeypatch.setattr(hif8.MatMul, "__call__", lambda self, *args: self.construct(*args))
    monkeypatch.setattr(hif8, "quant_matmul", quant_matmul)
    monkeypatch.setattr(hif8, "on_ascend", lambda: True)
    hif8.choose_backend.cache_clear()
    yield calls
    hif8.choose_backend.cache_clear()


@pytest.mark.parametrize(("options", "shapes"), [
    ({}, ((3, 5), (7, 5))), ({"plain_b": True}, ((3, 5), (5, 7))),
    ({"transpose_a": True, "plain_b": True}, ((5, 3), (5, 7))),
])
def test_quant_matmul_gets_two_fp32_scales_and_matrices_the_right_way_round(ascend_950, options, shapes):
    a, b = (FakeTensor(np.random.default_rng(i).normal(size=shape).astype(np.float32))
            for i, shape in enumerate(shapes))
    factors = Tensor([0.25], ms.float32), Tensor([2.0], ms.float32)
    out = hif8.MatMul(True, ms.bfloat16, **options)(a, b, *factors)
    ((left, right, scale, pertoken_scale, output_dtype),) = ascend_950
    assert (left.values.shape, right.values.shape) == ((3, 5), (5, 7))
    assert (left.dtype, right.dtype, output_dtype) == (ms.hifloat8, ms.hifloat8, ms.bfloat16)
    assert (scale.asnumpy(), pertoken_scale.asnumpy()) == ([2.0], [0.25])
    assert scale.dtype == pertoken_scale.dtype == ms.float32
    assert out.dtype == ms.bfloat16
    matmul = hif8.ops.MatMul(options.get("transpose_a", False), not options.get("plain_b", False))
    expected = matmul(Tensor(a.values), Tensor(b.values)).asnumpy() * 0.5
    assert np.allclose(out.astype(ms.float32).asnumpy(), expected, rtol=1e-2, atol=1e-2)


def test_native_quantise_scales_and_casts(monkeypatch):
    casts = []
    original = Tensor.astype
    monkeypatch.setattr(Tensor, "astype", lambda self, dtype: casts.append((dtype, self.asnumpy())) or (
        self if dtype == ms.hifloat8 else original(self, dtype)))
    hif8.Quantize(True, ms.float32).construct(Tensor([1.0, -3.0], ms.float32), Tensor([5.0], ms.float32))
    assert casts[-1][0] == ms.hifloat8
    assert np.array_equal(casts[-1][1], [5.0, -15.0])


def test_auto_is_native_where_the_device_agrees(ascend_950):
    backend = hif8.choose_backend("auto")
    assert backend.native
    assert "agree with the emulation" in str(backend)
    assert hif8.choose_backend("native").native
    assert not hif8.choose_backend("emulate").native


def test_a_device_that_rounds_otherwise_is_not_used(ascend_950, monkeypatch):
    monkeypatch.setattr("tests.kernels.test_hif8_operators.round_nearest", lambda x: np.trunc(x * 8) / 8)
    backend = hif8.choose_backend("auto")
    assert not backend.native
    assert "the device rounds" in backend.reason
    with pytest.raises(ValueError, match="'native' does not exist here: the device rounds"):
        hif8.choose_backend("native")


def test_a_device_that_multiplies_otherwise_is_not_used(ascend_950, monkeypatch):
    right = hif8.quant_matmul
    monkeypatch.setattr(hif8, "quant_matmul", lambda *args, **options: right(*args, **options) * 1.01)
    assert "product of 16x16 matrices differs by" in hif8.choose_backend("auto").reason


def test_a_device_that_refuses_is_not_used(ascend_950, monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("no hifloat8 on this chip\nC++ call stack")

    monkeypatch.setattr(hif8, "quant_matmul", refuse)
    assert hif8.choose_backend("auto") == hif8.Backend(False, "the device refuses HiF8 (no hifloat8 on this chip)")


def test_probe_covers_every_band_and_ties():
    magnitudes = np.abs(np.concatenate([hif8.probe_matrix(0), hif8.probe_matrix(1)]).ravel())
    assert np.all(np.isfinite(magnitudes))
    bands = np.digitize(np.abs(np.floor(np.log2(magnitudes))), [4, 8, 16])
    assert set(bands) == {0, 1, 2, 3}
    assert np.any(round_nearest(magnitudes.astype(np.float32)) > magnitudes)


def test_unknown_back_end_is_named():
    with pytest.raises(ValueError, match="back end is 'cuda'; valid: 'auto', 'native', 'emulate'"):
        hif8.choose_backend("cuda")


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
