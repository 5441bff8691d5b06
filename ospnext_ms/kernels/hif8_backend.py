"""Which HiF8 a run computes in: the device's own where a probe of it, in the very form that will run, agrees with the
emulation."""

from dataclasses import dataclass
from functools import cache
from typing import get_args

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from ospnext_ms import hif8_format as hif8
from ospnext_ms.kernels.device import on_ascend
from ospnext_ms.kernels.hif8_operators import Quantize, held_parameter, held_tensor
from ospnext_ms.kernels.hif8_product import HiF8FrozenProduct, HiF8Product

PROBE_SIZE = 64
# Largest error against the largest number: a rounding to fp16 (see NativeMatMul), and one to the dtype.
TOLERANCE = {ms.float32: 1e-3, ms.bfloat16: 1e-2}


@dataclass(frozen=True)
class Backend:
    """What computes, and why; `str()` is the line that a run shows its user."""

    native: bool
    reason: str

    def __str__(self):
        return f"HiF8 {'native' if self.native else 'emulated'}: {self.reason}"


@cache
def choose_backend(name, compiled=True, dtype=ms.float32):
    """The Backend for "native", "emulate" or "auto", which is native where a probe of small matrices agrees.

    Args:
        compiled: whether the run compiles its networks into graphs. dtype: it computes in.

    Raises:
        ValueError: an unknown name, or native where it does not exist, with the reason.
    """
    if name not in get_args(hif8.BackendName):
        raise ValueError(f"HiF8 back end is {name!r}; valid: {', '.join(map(repr, get_args(hif8.BackendName)))}")
    if name == "emulate":
        return Backend(False, "as configured")
    works, found = probe_native(compiled, dtype)
    if name == "native" and not works:
        raise ValueError(f"HiF8 back end 'native' does not exist here: {found}; valid: 'emulate', or 'auto'")
    return Backend(works, found)


def probe_native(compiled=True, dtype=ms.float32):
    """(whether the device's own HiF8 agrees with the emulation, what was found).

    Compared are the product that the linear layers are made of, its two gradients, and the product with a weight that
    is held in 8 bits, compiled or not as asked for.
    """
    if not on_ascend():
        return False, f"the device is {ms.get_context('device_target')}, which has no HiF8"
    try:
        return _compare_with_emulation(compiled, dtype)
    # Whatever a device without HiF8 raises, and operators raise many things, the answer is that it has none.
    except Exception as error:
        return False, f"the device refuses HiF8 ({str(error).strip().splitlines()[0]})"


class _Weighted(nn.Cell):
    """Sum of weights * product, whose gradient hands `weights` to the product's; and the product."""

    def __init__(self, product):
        super().__init__()
        self.product = product

    def construct(self, x, w, x_scale, w_scale, weights):
        y = self.product(x, w, x_scale, w_scale)
        return (y.astype(ms.float32) * weights).sum(), y


class _Rounded(nn.Cell):
    """x * scale rounded to HiF8, as numbers of `dtype`: what attention is given."""

    def __init__(self, native, dtype):
        super().__init__()
        self.dtype = dtype
        self.quantize = Quantize(native, dtype)

    def construct(self, x, scale):
        return self.quantize(x, scale).astype(self.dtype)


def rounding(native, compiled, dtype):
    """A function of x and its scale to the rounded numbers, as a run computes them."""
    cell = _Rounded(native, dtype)
    return ms.jit(cell) if compiled else cell


def product_and_gradients(native, compiled, dtype):
    """A function of x, w, their scales and dy to ((_, y), (dx, dw)) of HiF8Product, as a run computes them."""
    product = HiF8Product(native, dtype, hif8.SCALE_MAX_FORWARD, hif8.SCALE_MAX_BACKWARD)
    step = ms.value_and_grad(_Weighted(product), (0, 1), has_aux=True)
    return ms.jit(step) if compiled else step


class _Held(nn.Cell):
    """HiF8FrozenProduct with a weight that is held as a network holds it."""

    def __init__(self, native, dtype, codes):
        super().__init__()
        self.product = HiF8FrozenProduct(native, dtype, hif8.SCALE_MAX_FORWARD, hif8.SCALE_MAX_BACKWARD)
        self.weight = held_parameter(codes.shape, native, "weight")
        self.weight.set_data(held_tensor(codes, self.weight.dtype))

    def construct(self, x, x_scale, w_scale):
        return self.product(x, self.weight, x_scale, w_scale)


def held_product(native, compiled, dtype, codes):
    """A function of x and the scales of x and w to the product with a w whose codes are held."""
    cell = _Held(native, dtype, codes)
    return ms.jit(cell) if compiled else cell


def _compare_with_emulation(compiled, dtype):
    x, w, weights = (Tensor(probe_matrix(seed)) for seed in range(3))
    one, third = Tensor([1.0], ms.float32), Tensor([1 / 3], ms.float32)
    rounded, results = {}, {}
    for native in (False, True):
        rounded[native] = rounding(native, compiled, dtype)(x, one).astype(ms.float32).asnumpy()
        (_, y), gradients = product_and_gradients(native, compiled, dtype)(x, w, one, third, weights)
        held = held_product(native, compiled, dtype, hif8.encode(w.asnumpy() * np.float32(1 / 3)))(x, one, third)
        results[native] = [value.astype(ms.float32).asnumpy() for value in (y, *gradients, held)]
    if not np.array_equal(rounded[False], rounded[True]):
        wrong = np.argmax(rounded[False] != rounded[True])
        return False, (f"the device rounds {x.asnumpy().flat[wrong]!r} to {rounded[True].flat[wrong]!r} instead of "
                       f"{rounded[False].flat[wrong]!r}")
    how = "compiled" if compiled else "uncompiled"
    errors = [np.abs(a - b).max() / np.abs(a).max() for a, b in zip(results[False], results[True], strict=True)]
    for name, error in zip(("product", "gradient of x", "gradient of w", "product with a held w"), errors, strict=True):
        if not error <= TOLERANCE[dtype]:
            return False, f"the device's {how} {name} of {PROBE_SIZE}x{PROBE_SIZE} matrices differs by {error:.1e}"
    return True, (f"the device's rounding and a {how} {PROBE_SIZE}x{PROBE_SIZE} product with its gradients agree with "
                  f"the emulation ({max(errors):.0e})")


def probe_matrix(seed):
    """fp32 [PROBE_SIZE, PROBE_SIZE] with numbers of all bands of HiF8 up to 15, ties and numbers beside them, both
    signs; one of them 15."""
    rng = np.random.default_rng(seed)
    size = PROBE_SIZE**2
    values = hif8.values()
    values = values[(values > 0) & (values <= hif8.SCALE_MAX_FORWARD / 1.25)]
    numbers = rng.choice(values, size) * rng.choice([1, 1.0625, 1.125, 1.25, 1.2499999], size)
    numbers *= rng.choice([-1, 1], size)
    numbers[0] = hif8.SCALE_MAX_FORWARD
    return numbers.astype(np.float32).reshape(PROBE_SIZE, PROBE_SIZE)
