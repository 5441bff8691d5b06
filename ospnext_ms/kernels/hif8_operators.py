"""Scales of HiF8, and rounding to it: native on Ascend 950, emulated exactly elsewhere."""

from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer
from mindspore.nn.utils import no_init_parameters

from ospnext_ms import hif8_format as hif8
from ospnext_ms.kernels.collectives import AllMax, ProcessGroup
from ospnext_ms.kernels.device import on_ascend
from ospnext_ms.kernels.slices import take

ALONE = ProcessGroup()


class Amax(nn.Cell):
    """Largest |x|, infinite where x holds a NaN: x of any shape and float dtype -> fp32 [1]. Without gradient."""

    def __init__(self):
        super().__init__()
        self.on_host = None if on_ascend() else _host_operator(_amax, _one_number)
        # One number: a graph folds a full_like into a constant of the size of x, which it holds for good.
        self.infinity = Tensor(np.inf, ms.float32)

    def construct(self, x):
        x = ops.stop_gradient(x)
        if self.on_host is not None:
            return self.on_host(x.astype(ms.float32))
        # The maximum of a tensor, or over ranks, may or may not see a NaN. In the dtype of x, which holds its maximum:
        # fp32 would be a copy of twice the size.
        magnitude = ops.abs(x)
        infinity = self.infinity.astype(x.dtype)
        return ops.ReduceMax()(ops.where(magnitude < np.inf, magnitude, infinity)).astype(ms.float32).reshape(1)


def scale_for(amax, scale_max):
    """Scale that brings `amax` to `scale_max`, fp32, shape of amax.

    1 where amax is 0. NaN where amax is not finite, so that everything computed from it is NaN: a graph cannot raise.
    """
    # A tensor over a tensor: the CPU backend multiplies a number over a tensor by a reciprocal, one unit off at times.
    scale = ops.minimum(ops.full_like(amax, scale_max) / amax, Tensor(hif8.MAX_SCALE, ms.float32))
    scale = ops.where(amax == 0, ops.ones_like(amax), scale)
    return ops.where(amax < np.inf, scale, ops.full_like(amax, np.nan))


class Scale(nn.Cell):
    """Scale that brings the largest |x| among the ranks of `group` to `scale_max`, see scale_for. Without gradient.

    Input: x of any shape and float dtype. Output: fp32 [1].
    """

    def __init__(self, scale_max, group=ALONE):
        super().__init__()
        self.scale_max = scale_max
        self.amax = Amax()
        self.all_max = AllMax(group)
        # The same numbers in one operator: a graph of a hundred layers compiles in half the time.
        whole = not on_ascend() and group.size == 1
        self.on_host = _host_operator(_scale_function(scale_max), _one_number) if whole else None

    def construct(self, x):
        if self.on_host is not None:
            return self.on_host(ops.stop_gradient(x).astype(ms.float32))
        return scale_for(self.all_max(self.amax(x), "scales"), self.scale_max)


class Quantize(nn.Cell):
    """x * scale rounded to HiF8, to nearest with ties away from zero. Without gradient.

    Args:
        native: cast to hifloat8 on the device, or emulate.
        dtype: of the emulation's result.
        bound: |x * scale| never exceeds it, where that is known.

    Inputs: x of any shape and float dtype; scale fp32 [1]. Output: as x, hifloat8 or `dtype`.
    """

    def __init__(self, native, dtype, bound=None):
        super().__init__()
        self.native = native
        self.dtype = dtype
        self.round = RoundByArithmetic(bound) if on_ascend() else _host_operator(_round_scaled, _same_shape)
        self.on_host = not on_ascend()

    def construct(self, x, scale):
        x = ops.stop_gradient(x).astype(ms.float32)
        if self.native:
            return (x * scale).astype(ms.hifloat8)
        if self.on_host:
            return self.round(x, scale).astype(self.dtype)
        return self.round(x * scale).astype(self.dtype)


def held_parameter(shape, native, name):
    """A frozen Parameter, without memory yet, for HiF8 codes: hifloat8 where `native`, else uint8, the same bytes."""
    with no_init_parameters():
        start = initializer("zeros", shape, ms.hifloat8 if native else ms.uint8)
        return Parameter(start, name=name, requires_grad=False)


def held_tensor(codes, dtype):
    """HiF8 codes, uint8 array, as a tensor of the dtype of a held_parameter."""
    codes = Tensor(np.ascontiguousarray(codes))
    if dtype == ms.uint8:
        return codes
    # A view is made where the device is, and stays there; weights that come in turn are not to.
    return codes.view(dtype).to("CPU") if on_ascend() else codes.view(dtype)


def held_codes(parameter):
    """Codes of a held_parameter, uint8 array."""
    return (parameter if parameter.dtype == ms.uint8 else parameter.view(ms.uint8)).asnumpy()


def no_gradient(codes):
    """What a `bprop` returns for a held_parameter, which has no gradient: zeros. MindSpore adds up those of a parameter
    that is used twice before it finds that nobody asked for them, and cannot add hifloat8."""
    return ops.zeros((1,), ms.float32) if codes.dtype == ms.hifloat8 else ops.zeros_like(codes)


class Decode(nn.Cell):
    """What a held_parameter holds -> what Quantize made of the same numbers. Without gradient."""

    def __init__(self, native, dtype):
        super().__init__()
        self.native = native
        self.dtype = dtype
        self.on_host = None if on_ascend() else ops.Custom(hif8.decode, _same_shape, ms.float32, func_type="pyfunc")
        self.table = Tensor(hif8.values(), ms.float32).astype(dtype)

    def construct(self, codes):
        if self.native:
            return codes
        if self.on_host is not None:
            return self.on_host(codes).astype(self.dtype)
        return take(self.table, codes.reshape(-1).astype(ms.int32), 0).reshape(codes.shape)


class RoundByArithmetic(nn.Cell):
    """Nearest HiF8 value of every fp32 number, from floating-point operations that every device has. fp32.

    For a number y with k significant bits to be kept, (y + C y) - C y with C near 2^(24 - k) rounds it: the sum has no
    room for more. The last few units of C are such that in a tie C y is odd or even just so that the hardware's
    rounding to even goes away from zero. C is chosen by the band |y| is in; below 2^-22 it is such that everything from
    2^-24 goes to the next power of two, of which 2^-22 stays.

    Passes over y: 15 for numbers up to 15 (`bound`), 22 where nothing is known. Compilers must not contract
    multiplications and additions here.
    """

    def __init__(self, bound=None):
        super().__init__()
        self.symmetric = bound is None or bound >= 16
        self.may_overflow = bound is None or bound >= hif8.OVERFLOW
        constants = (2.0**20 - 25 / 8, 2.0**21 - 13 / 4, 2.0**22 - 7 / 2, 2.0**23 - 4, 2.0**24 + 2)
        self.three, self.two, self.one, self.none, self.up = (Tensor(c, ms.float32) for c in constants)
        self.zero = Tensor(0.0, ms.float32)
        self.limit = Tensor(hif8.OVERFLOW, ms.float32)
        self.infinity = Tensor(np.inf, ms.float32)

    def construct(self, y):
        magnitude = ops.abs(y)
        # Band edges are powers of two, so that a number beside an edge may fall into either band.
        distance = 2.0 / magnitude
        if self.symmetric:
            distance = ops.maximum(magnitude, distance)
        factor = ops.where(distance > 16, self.two, self.three)
        factor = ops.where(distance > 256, self.one, factor)
        factor = ops.where(distance > 65536, self.none, factor)
        factor = ops.where(magnitude < 2.0**-22 * 0.999, self.up, factor)
        inside = ops.minimum(ops.maximum(y, -self.limit), self.limit) if self.may_overflow else y
        shift = inside * factor
        rounded = (inside + shift) - shift
        rounded = ops.where(magnitude < 2.0**-23, self.zero, rounded)
        if self.may_overflow:
            rounded = ops.where(magnitude >= self.limit, y * self.infinity, rounded)
            rounded = ops.where(y == y, rounded, y)
        return rounded


def _host_operator(function, out_shape):
    """A NumPy function of fp32 arrays as an operator of the CPU: MindSpore's own need a pass, and a kernel, for each of
    a dozen elementwise steps, and have none for taking the bits of a number in a compiled graph."""
    return ops.Custom(function, out_shape=out_shape, out_dtype=_float32, func_type="pyfunc")


def _float32(*dtypes):
    return dtypes[0]


def _same_shape(*shapes):
    return shapes[0]


def _one_number(*shapes):
    return (1,)


def _amax(x):
    # np.abs would be a pass more. A NaN is the maximum and the minimum.
    amax = max(x.max(), -x.min()) if x.size else 0.0
    return np.array([np.inf if np.isnan(amax) else amax], np.float32)


@cache
def _scale_function(scale_max):
    def scale(x):
        amax = _amax(x)[0]
        with np.errstate(over="ignore"):
            return np.array([hif8.scale_of(amax, scale_max) if np.isfinite(amax) else np.nan], np.float32)

    return scale


def _round_scaled(x, scale):
    # Infinite and signalling numbers are not errors here: they become infinities and NaN.
    with np.errstate(all="ignore"):
        return hif8.round_nearest(x, scale)


def quantize_dequantize_on_device(x, scale_max):
    """x through HiF8 and back on the device, in its dtype; None on CPU, where NumPy takes a quarter of the time.

    Raises:
        ValueError: scale_max with numbers that are not finite.
    """
    if not on_ascend():
        return None
    scale = Tensor([1.0], ms.float32)
    if scale_max is not None:
        amax = _amax_cell()(x)
        scale = scale_for(amax, scale_max)
        if not np.isfinite(scale.asnumpy()).all():
            hif8.scale_of(amax.asnumpy()[0], scale_max)
    return (_quantize_cell()(x, scale) / scale).astype(x.dtype)


@cache
def _amax_cell():
    return Amax()


@cache
def _quantize_cell():
    return Quantize(False, ms.float32)
