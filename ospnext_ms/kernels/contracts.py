"""The kernels' contracts, each checked against NumPy in float64. Tests run them on CPU, `doctor` on the device at hand.

A check returns a line with the measured error and raises AssertionError where the contract does not hold.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ospnext_ms.hif8_format import nearest_values, round_nearest
from ospnext_ms.kernels import hif8_operators as hif8
from ospnext_ms.kernels.activations import GELU
from ospnext_ms.kernels.adamw import adamw_update
from ospnext_ms.kernels.attention import Attention, default_attention
from ospnext_ms.kernels.device import compute_convolutions_in_fp32, on_ascend
from ospnext_ms.kernels.hif8_backend import choose_backend
from ospnext_ms.kernels.hif8_product import MatMul
from ospnext_ms.kernels.norms import layer_norm, rms_norm
from ospnext_ms.kernels.rotary import RotatePairs, rotations

# Largest relative Frobenius error: a few roundings of the dtype.
TOLERANCE = {ms.float32: 1e-5, ms.bfloat16: 2e-2}


def compute_dtype():
    """dtype the networks compute in on this device: bf16 on Ascend, fp32 elsewhere."""
    return ms.bfloat16 if on_ascend() else ms.float32


def _report(actual, expected, dtype, tolerance=None):
    actual = actual.astype(ms.float32).asnumpy().astype(np.float64)
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    tolerance = tolerance or TOLERANCE[dtype]
    assert error <= tolerance, f"relative error {error:.2e}, allowed {tolerance:.0e}"
    return f"relative error {error:.1e} in {dtype}"


def _inputs(*shapes, dtype):
    """Tensors of `dtype` and the very same values in NumPy float64."""
    rng = np.random.default_rng(0)
    tensors = [Tensor(rng.normal(size=shape).astype(np.float32)).astype(dtype) for shape in shapes]
    return tensors, [tensor.astype(ms.float32).asnumpy().astype(np.float64) for tensor in tensors]


def check_attention(implementation=None, dtype=None):
    """Attention of 200 queries to 330 keys, 4 heads of 32."""
    dtype = dtype or compute_dtype()
    implementation = implementation or default_attention(dtype)
    (q, k, v), (q64, k64, v64) = _inputs((2, 200, 4, 32), (2, 330, 4, 32), (2, 330, 4, 32), dtype=dtype)
    scores = np.einsum("bnhd,bmhd->bhnm", q64, k64) / np.sqrt(32)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhnm,bmhd->bnhd", weights, v64)
    return f"{implementation}: " + _report(Attention(implementation)(q, k, v), expected, dtype)


def check_layer_norm():
    """LayerNorm of rows of 96."""
    (x, weight, bias), (x64, weight64, bias64) = _inputs((3, 7, 96), (96,), (96,), dtype=ms.float32)
    centred = x64 - x64.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * weight64 + bias64
    return _report(layer_norm(x, weight, bias, 1e-6), expected, ms.float32)


def check_rms_norm():
    """RMSNorm of rows of 96."""
    (x, weight), (x64, weight64) = _inputs((3, 7, 96), (96,), dtype=ms.float32)
    expected = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-6) * weight64
    return _report(rms_norm(x, weight, 1e-6), expected, ms.float32)


def check_rotary():
    """Rotation of the pairs of 4 heads of 16, 7 positions."""
    (x, _), (x64, angles64) = _inputs((2, 7, 4, 16), (7, 8), dtype=ms.float32)
    tables = rotations(*(function(angles64).astype(np.float32) for function in (np.cos, np.sin)))
    cos, sin = np.cos(angles64)[None, :, None], np.sin(angles64)[None, :, None]
    even, odd = x64[..., 0::2], x64[..., 1::2]
    expected = np.stack((even * cos - odd * sin, even * sin + odd * cos), -1).reshape(x64.shape)
    return _report(RotatePairs()(x, *tables), expected, ms.float32)


def check_adamw():
    """Two updates of a parameter of 24x32 and its moments."""
    starts, _ = _inputs((24, 32), (24, 32), (24, 32), dtype=ms.float32)
    tensors = [Parameter(start, name=name) for name, start in zip("pmv", starts, strict=True)]
    ops.assign(tensors[2], ops.square(tensors[2]))
    p, m, v = (tensor.asnumpy().astype(np.float64) for tensor in tensors)
    (gradient,), (g,) = _inputs((24, 32), dtype=ms.float32)
    for step in (1, 2):
        adamw_update(*tensors, gradient, Tensor([step], ms.float32), 0.01, (0.9, 0.95), 1e-8, 0.1)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        p = p * (1 - 0.001) - 0.01 * m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
    lines = [_report(tensor, values, ms.float32) for tensor, values in zip(tensors, (p, m, v), strict=True)]
    return lines[0]


def check_gelu():
    """GELU, tanh form, of values up to +-12."""
    (x,), (x64,) = _inputs((64, 96), dtype=ms.float32)
    expected = 1.5 * x64 * (1 + np.tanh(np.sqrt(2 / np.pi) * (3 * x64 + 0.044715 * (3 * x64) ** 3)))
    return _report(GELU()(3 * x), expected, ms.float32)


def check_convolution():
    """A convolution of 16 channels, 3x3 pixels, in fp32; in HF32 the error would be some 5e-4."""
    compute_convolutions_in_fp32()
    (x, weight), (x64, weight64) = _inputs((1, 16, 10, 12), (8, 16, 3, 3), dtype=ms.float32)
    cell = nn.Conv2d(16, 8, 3, pad_mode="valid")
    cell.weight.set_data(weight)
    windows = np.lib.stride_tricks.sliding_window_view(x64, (3, 3), (2, 3))
    return _report(cell(x), np.einsum("bchwij,ocij->bohw", windows, weight64), ms.float32)


def check_hif8_rounding():
    """Rounding to HiF8 of every bf16 number, exactly, without a scale."""
    numbers = (np.arange(65536, dtype=np.uint32) << 16).view(np.float32)
    rounded = hif8.Quantize(False, ms.float32)(Tensor(numbers), Tensor([1.0], ms.float32)).asnumpy()
    wrong = np.flatnonzero(~((rounded == nearest_values()) | (np.isnan(rounded) & np.isnan(nearest_values()))))
    assert not len(wrong), f"{len(wrong)} of 65536 numbers are wrong, {numbers[wrong[0]]} gives {rounded[wrong[0]]}"
    return "relative error 0 in 65536 numbers"


def check_hif8_product():
    """HiF8 product of 48x64 and 32x64 matrices with their scales, by the back end that "auto" chooses."""
    backend = choose_backend("auto")
    (a, b), arrays = _inputs((48, 64), (32, 64), dtype=ms.float32)
    scales = [np.float32(15) / np.float32(np.abs(x).max()) for x in arrays]
    a64, b64 = (round_nearest(x.astype(np.float32) * s).astype(np.float64) / s
                for x, s in zip(arrays, scales, strict=True))
    quantize, scale = hif8.Quantize(backend.native, ms.float32), hif8.Scale(15.0)
    product = MatMul(backend.native, ms.float32, 15.0**2)(
        quantize(a, scale(a)), quantize(b, scale(b)), 1 / scale(a), 1 / scale(b)
    )
    # The native product arrives in fp16.
    return f"{backend}; " + _report(product, a64 @ b64.T, ms.float32, 1e-3 if backend.native else None)


CONTRACTS = (
    ("attention", check_attention),
    ("layer_norm", check_layer_norm),
    ("rms_norm", check_rms_norm),
    ("rotary", check_rotary),
    ("gelu", check_gelu),
    ("adamw", check_adamw),
    ("convolution", check_convolution),
    ("hif8_rounding", check_hif8_rounding),
    ("hif8_product", check_hif8_product),
)
