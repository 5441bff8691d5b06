"""What the HiF8 product hands to Ascend's operators, and how the probe judges them; by substituting the operators."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from ospnext_ms.hif8_format import decode, encode, encode_scaled, round_nearest
from ospnext_ms.kernels import hif8_backend as backend
from ospnext_ms.kernels import hif8_operators, hif8_product


class FakeTensor:
    """Stands for a hifloat8 tensor, which the CPU cannot hold."""

    def __init__(self, values, dtype=ms.hifloat8):
        self.values, self.dtype, self.shape = values, dtype, values.shape

    def swapaxes(self, a, b):
        return FakeTensor(self.values.swapaxes(a, b), self.dtype)

    def expand_dims(self, axis):
        return FakeTensor(np.expand_dims(self.values, axis), self.dtype)

    def astype(self, dtype):
        return Tensor(self.values).astype(dtype)


def grouped_matmul(x, weight, bias, scale, offset, antiquant_scale, antiquant_offset, x_scale, groups, activation,
                   activation_scale, activation_offset, split_item, group_type, group_list_type, act_type, dtype):
    """GroupedMatmulV4 by its documentation, for one group of rows of two hifloat8 matrices with one fp32 scale; fp16
    is how MindSpore types the result."""
    unused = (bias, offset, antiquant_scale, antiquant_offset, x_scale, activation, activation_scale, activation_offset)
    assert all(argument is None for argument in unused)
    assert (split_item, group_type, group_list_type, act_type, dtype) == (3, 0, 1, 0, None)
    (x,), (weight,), (scale,) = x, weight, scale
    assert (x.dtype, weight.dtype, scale.dtype, groups.dtype) == (ms.hifloat8, ms.hifloat8, ms.float32, ms.int64)
    assert groups.asnumpy().tolist() == [x.shape[0]]
    assert scale.shape == (1,)
    assert weight.shape[0] == 1
    with np.errstate(over="ignore"):
        return (Tensor((x.values @ weight.values[0] * scale.asnumpy()).astype(np.float16)),)


@pytest.fixture
def ascend_950(monkeypatch):
    """Native operators by their contract: a cast that rounds, and GroupedMatmulV4. Uncompiled, without a graph."""
    def quantize(self, x, scale):
        return FakeTensor(round_nearest(x.asnumpy() * scale.asnumpy()))

    def product(native, compiled, dtype):
        cell = hif8_product.HiF8Product(native, dtype, 15.0, 224.0)

        def step(x, w, x_scale, w_scale, weights):
            y = cell.construct(x, w, x_scale, w_scale)
            dx, dw, *_ = cell.bprop(x, w, x_scale, w_scale, y, weights)
            return (None, y), (dx, dw)

        return step

    emulated = hif8_operators.Quantize.construct
    monkeypatch.setattr(hif8_operators.Quantize, "__call__",
                        lambda self, x, scale: (quantize if self.native else emulated)(self, x, scale))
    monkeypatch.setattr(hif8_product.MatMul, "__call__", lambda self, *args: self.construct(*args))
    monkeypatch.setattr(hif8_product.NativeMatMul, "__call__", lambda self, *args: self.construct(*args))
    monkeypatch.setattr(hif8_product, "GroupedMatmulV4", lambda: grouped_matmul)
    monkeypatch.setattr(backend, "product_and_gradients", product)
    monkeypatch.setattr(backend, "held_product", lambda native, compiled, dtype, codes: (
        lambda x, x_scale, w_scale: hif8_product.HiF8FrozenProduct(native, dtype, 15.0, 224.0).construct(
            x, FakeTensor(decode(codes)) if native else Tensor(codes), x_scale, w_scale)))
    monkeypatch.setattr(backend, "rounding", lambda native, compiled, dtype: (
        lambda x, scale: hif8_operators.Quantize(native, dtype)(x, scale).astype(dtype)))
    monkeypatch.setattr(backend, "on_ascend", lambda: True)
    backend.choose_backend.cache_clear()
    yield monkeypatch
    backend.choose_backend.cache_clear()


@pytest.mark.parametrize(("options", "shapes"), [
    ({}, ((3, 5), (7, 5))), ({"plain_b": True}, ((3, 5), (5, 7))),
    ({"transpose_a": True, "plain_b": True}, ((5, 3), (5, 7))),
])
def test_both_products_agree(ascend_950, options, shapes):
    arrays = [np.random.default_rng(i).normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)]
    factors = Tensor([0.25], ms.float32), Tensor([2.0], ms.float32)
    native = hif8_product.MatMul(True, ms.float32, 225.0, **options)(*map(FakeTensor, arrays), *factors)
    emulated = hif8_product.MatMul(False, ms.float32, 225.0, **options)(*map(Tensor, arrays), *factors)
    np.testing.assert_allclose(native.asnumpy(), emulated.asnumpy(), rtol=1e-3, atol=1e-3)
    rounded = hif8_product.MatMul(True, ms.bfloat16, 225.0, **options)(*map(FakeTensor, arrays), *factors)
    assert rounded.dtype == ms.bfloat16


@pytest.mark.parametrize("columns", [64, 5120, 13824, 75600])
def test_no_product_overflows_fp16(ascend_950, columns):
    largest = FakeTensor(np.full((1, columns), 15, np.float32)), FakeTensor(np.full((1, columns), 224, np.float32))
    one = Tensor([1.0], ms.float32)
    y = hif8_product.MatMul(True, ms.float32, 15.0 * 224)(*largest, one, one)
    np.testing.assert_allclose(y.asnumpy(), [[15.0 * 224 * columns]], rtol=1e-3)


def test_auto_is_native_where_the_device_agrees(ascend_950):
    chosen = backend.choose_backend("auto")
    assert chosen.native
    assert "product with its gradients agree with the emulation" in str(chosen)
    assert backend.choose_backend("native").native
    assert not backend.choose_backend("emulate").native


def test_a_device_that_rounds_otherwise_is_not_used(ascend_950):
    ascend_950.setattr("tests.kernels.test_hif8_product.round_nearest", lambda x: np.trunc(x * 8) / 8)
    chosen = backend.choose_backend("auto")
    assert not chosen.native
    assert "the device rounds" in chosen.reason
    with pytest.raises(ValueError, match="'native' does not exist here: the device rounds"):
        backend.choose_backend("native")


def test_a_device_that_reads_held_codes_otherwise_is_not_used(ascend_950):
    right = backend.held_product
    ascend_950.setattr(backend, "held_product", lambda native, compiled, dtype, codes: right(
        native, compiled, dtype, codes ^ 0x80 if native else codes))
    assert "product with a held w of 64x64 matrices differs by" in backend.choose_backend("auto").reason


@pytest.mark.parametrize("wrong", ["product", "gradient of x", "gradient of w"])
def test_a_device_that_multiplies_otherwise_is_not_used(ascend_950, wrong):
    right = backend.product_and_gradients

    def product(native, compiled, dtype):
        def step(*arguments):
            (total, y), (dx, dw) = right(native, compiled, dtype)(*arguments)
            results = {"product": y, "gradient of x": dx, "gradient of w": dw}
            if native:
                results[wrong] = results[wrong] * 1.01
            return (total, results["product"]), (results["gradient of x"], results["gradient of w"])

        return step

    ascend_950.setattr(backend, "product_and_gradients", product)
    assert f"compiled {wrong} of 64x64 matrices differs by" in backend.choose_backend("auto").reason


def test_a_device_that_refuses_is_not_used(ascend_950):
    def refuse(*arguments):
        raise RuntimeError("no hifloat8 on this chip\nC++ call stack")

    ascend_950.setattr("tests.kernels.test_hif8_product.round_nearest", refuse)
    reason = "the device refuses HiF8 (no hifloat8 on this chip)"
    assert backend.choose_backend("auto") == backend.Backend(False, reason)


def test_the_probe_is_compiled_where_the_run_is(ascend_950):
    asked = []
    ascend_950.setattr(backend, "product_and_gradients",
                       lambda native, compiled, dtype: asked.append((compiled, dtype)) or (lambda *_: 1 / 0))
    ascend_950.setattr(backend, "rounding", lambda *options: asked.append(options[1:]) or (lambda x, scale: x))
    backend.choose_backend("auto", True, ms.bfloat16)
    backend.choose_backend("auto", False, ms.bfloat16)
    assert asked == [(True, ms.bfloat16)] * 2 + [(False, ms.bfloat16)] * 2


def test_the_probe_runs_compiled():
    """The probe's own code, both sides of it emulated."""
    step, plain = (backend.product_and_gradients(False, compiled, ms.float32) for compiled in (True, False))
    x, w, weights = (Tensor(backend.probe_matrix(seed)) for seed in range(3))
    one = Tensor([1.0], ms.float32)
    (_, y), (dx, dw) = step(x, w, one, one, weights)
    (_, y2), (dx2, dw2) = plain(x, w, one, one, weights)
    rounded, plainly = (backend.rounding(False, compiled, ms.float32)(x, one) for compiled in (True, False))
    codes = encode(w.asnumpy())
    held, held2 = (backend.held_product(False, compiled, ms.float32, codes)(x, one, one) for compiled in (True, False))
    assert np.array_equal(held2.asnumpy(), y2.asnumpy())
    for a, b in ((y, y2), (dx, dx2), (dw, dw2), (rounded, plainly), (held, held2)):
        np.testing.assert_array_equal(a.asnumpy(), b.asnumpy())


def test_probe_covers_every_band_and_ties():
    magnitudes = np.abs(np.concatenate([backend.probe_matrix(0), backend.probe_matrix(1)]).ravel())
    assert magnitudes.max() == 15
    bands = np.digitize(np.abs(np.floor(np.log2(magnitudes))), [4, 8, 16])
    assert set(bands) == {0, 1, 2, 3}
    assert np.any(round_nearest(magnitudes.astype(np.float32)) > magnitudes)


def test_unknown_back_end_is_named():
    with pytest.raises(ValueError, match="back end is 'cuda'; valid: 'auto', 'native', 'emulate'"):
        backend.choose_backend("cuda")


class _Gradients(nn.Cell):
    """The graph of the native product's two gradients, as ms.value_and_grad makes it."""

    def __init__(self):
        super().__init__()
        self.net = hif8_product.HiF8Product(True, ms.bfloat16, 15.0, 224.0)
        self.grad = ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, x, w, x_scale, w_scale, dy):
        return self.grad(self.net)(x, w, x_scale, w_scale, dy)


def test_the_native_graph_of_gradients_is_valid(tmp_path):
    """The CPU has no such operators, but exporting a graph builds it, with the operators' own inference of shapes."""
    x, w, dy = (Tensor(np.zeros(shape, np.float32)).astype(ms.bfloat16) for shape in ((32, 64), (48, 64), (32, 48)))
    one = Tensor([1.0], ms.float32)
    ms.export(_Gradients(), x, w, one, one, dy, file_name=str(tmp_path / "gradients"), file_format="MINDIR")
    assert (tmp_path / "gradients.mindir").stat().st_size


def test_a_frozen_product_hands_the_same_to_the_operators(ascend_950):
    """Its codes, held as hifloat8, are the numbers that the weight is rounded to in every call otherwise."""
    x, w, dy = (Tensor(backend.probe_matrix(seed)) for seed in range(3))
    codes, w_scale = encode_scaled(w.asnumpy(), 15.0)
    w_scale, x_scale = Tensor(w_scale), Tensor([0.7], ms.float32)
    ascend_950.setattr(hif8_product.ops, "zeros_like", lambda x: None)
    results = []
    for cell, weight in ((hif8_product.HiF8Product(True, ms.float32, 15.0, 224.0), w),
                         (hif8_product.HiF8FrozenProduct(True, ms.float32, 15.0, 224.0), FakeTensor(decode(codes)))):
        y = cell.construct(x, weight, x_scale, w_scale)
        results.append((y, cell.bprop(x, weight, x_scale, w_scale, y, dy)[0]))
    for plain, frozen in zip(*results, strict=True):
        assert np.array_equal(plain.asnumpy(), frozen.asnumpy())


def test_codes_are_held_as_hifloat8_byte_by_byte():
    """A parameter of a native layer, as its memory is filled when weights are loaded."""
    codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for native, dtype in ((True, ms.hifloat8), (False, ms.uint8)):
        parameter = hif8_operators.held_parameter((16, 16), native, "weight")
        parameter.set_data(hif8_operators.held_tensor(codes, parameter.dtype))
        assert parameter.dtype == dtype
        assert np.array_equal(hif8_operators.held_codes(parameter), codes)
