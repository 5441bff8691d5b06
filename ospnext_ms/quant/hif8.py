"""HiFloat8 for NumPy arrays and MindSpore tensors, and its linear layer. `hif8_format.py` defines the numbers."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from ospnext_ms import hif8_format
from ospnext_ms.hif8_format import MAX_VALUE, NAN, ROUNDINGS, check_rounding
from ospnext_ms.kernels.hif8_operators import quantize_dequantize_on_device
from ospnext_ms.quant.hif8_linear import HiF8Linear

__all__ = ["MAX_VALUE", "NAN", "ROUNDINGS", "HiF8Linear", "decode", "encode", "quantize_dequantize"]


def encode(x, rounding="nearest", seed=None):
    """HiF8 codes of a float array (or tensor): uint8 array (or tensor) of its shape. See hif8_format.encode."""
    if not isinstance(x, Tensor):
        return hif8_format.encode(x, rounding, seed)
    return Tensor(hif8_format.encode(x.astype(ms.float32).asnumpy(), rounding, seed))


def decode(codes):
    """fp32 values of HiF8 codes, array or tensor. Raises ValueError where they are not uint8."""
    if not isinstance(codes, Tensor):
        return hif8_format.decode(codes)
    if codes.dtype != ms.uint8:
        raise ValueError(f"HiF8 codes have dtype {codes.dtype}; expected UInt8")
    return ops.gather(Tensor(hif8_format.values()), codes.astype(ms.int32), 0)


def quantize_dequantize(x, scale_max=None, rounding="nearest", seed=None):
    """x through HiF8 and back, array or tensor: shape and dtype of x.

    Args:
        x: any float dtype.
        scale_max: scale x so that its largest |x| becomes this, and scale back. Without it x is rounded as it is.
        rounding, seed: see hif8_format.encode.

    Raises:
        ValueError: scale_max with numbers that are not finite, or not between 0 and 32768; see also hif8_format.encode.
    """
    check_rounding(rounding, seed)
    if scale_max is not None and not 0 < scale_max <= MAX_VALUE:
        raise ValueError(f"scale_max is {scale_max}; it must be above 0 and at most {MAX_VALUE:g}")
    return (_tensor if isinstance(x, Tensor) else _array)(x, scale_max, rounding, seed)


def _array(x, scale_max, rounding, seed):
    dtype = np.asarray(x).dtype
    x = hif8_format.as_float32(x)
    scale = np.float32(1)
    if scale_max is not None:
        scale = hif8_format.scale_of(np.float32(max(x.max(), -x.min()) if x.size else 0), scale_max)
    if rounding == "nearest":
        return hif8_format.round_nearest(x, scale, rescale=scale_max is not None).astype(dtype, copy=False)
    return (hif8_format.decode(hif8_format.encode(x * scale, rounding, seed)) / scale).astype(dtype, copy=False)


def _tensor(x, scale_max, rounding, seed):
    # Random numbers are the host's.
    on_device = None if rounding == "stochastic" else quantize_dequantize_on_device(x, scale_max)
    if on_device is not None:
        return on_device
    return Tensor(_array(x.astype(ms.float32).asnumpy(), scale_max, rounding, seed)).astype(x.dtype)
