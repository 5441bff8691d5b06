"""Weights stored in float8, as ComfyUI has them, on their way back into bf16.

Plain, or as codes and a scale, of the whole tensor or of each row: NAME.weight beside NAME.scale_weight, in newer files
NAME.weight_scale. A weight is code * scale. What those files hold for computing in float8 is no weight and left out.
"""

import math
from collections import Counter

import numpy as np

from ospnext_ms.storage.weights import bfloat16_bits

FLOAT8 = {"F8_E4M3": "e4m3fn", "F8_E5M2": "e5m2"}
_SCALES = (".scale_weight", ".weight_scale")
_FOR_COMPUTING = (".scale_input", ".input_scale", ".comfy_quant")
_MARK = "scaled_fp8"
# Elements that are decoded at once.
_PIECE = 1 << 22


def dequantise(tensors):
    """({name: tensor} in bf16 where they were float8, what was dequantised as text or None, {reason: names left out}).

    Raises:
        ValueError: a scale without a float8 weight, or whose shape is neither one number nor one a row.
    """
    scales, kept, dropped = {}, {}, []
    for name, tensor in tensors.items():
        ending = next((ending for ending in _SCALES if name.endswith(ending)), None)
        if ending:
            scales[name.removesuffix(ending) + ".weight"] = tensor
        elif name == _MARK or name.endswith(_FOR_COMPUTING):
            dropped.append(name)
        else:
            kept[name] = tensor
    odd = sorted(name for name in scales if name not in kept or kept[name].dtype not in FLOAT8)
    if odd:
        raise ValueError(f"a scale without float8 codes: {', '.join(odd[:5])}")
    counts = Counter()
    for name, tensor in kept.items():
        if tensor.dtype in FLOAT8:
            counts[FLOAT8[tensor.dtype], name in scales] += 1
            kept[name] = Dequantised(name, tensor, scales.get(name))
    said = ", ".join(f"{count} of float8 {kind}{' with their scale' if scaled else ''}"
                     for (kind, scaled), count in counts.items())
    return kept, said or None, {"for computing in float8": dropped} if dropped else {}


class Dequantised:
    """A float8 tensor as a bf16 one to write: codes are exact in bf16, products with a scale are rounded to it."""

    dtype = "BF16"

    def __init__(self, name, tensor, scale):
        self._tensor = tensor
        self.shape, self.nbytes = tuple(tensor.shape), 2 * math.prod(tensor.shape)
        self._scale = np.ones(1, np.float32) if scale is None else scale.numpy().astype(np.float32).reshape(-1)
        if self._scale.size not in (1, self.shape[0] if self.shape else 1):
            raise ValueError(f"the scale of {name} {self.shape} has {self._scale.size} numbers; expected one, or one "
                             "a row")

    def chunks(self):
        """The bytes in order."""
        values, row, position = _values(self._tensor.dtype), math.prod(self.shape[1:]), 0
        for chunk in self._tensor.chunks():
            codes = np.frombuffer(chunk, np.uint8)
            for start in range(0, len(codes), _PIECE):
                piece = values[codes[start : start + _PIECE]]
                if self._scale.size == 1:
                    piece *= self._scale
                else:
                    piece *= self._scale[np.arange(position, position + len(piece)) // row]
                position += len(piece)
                yield bfloat16_bits(piece).view(np.uint8).data


def _values(dtype):
    """The numbers of all 256 codes, fp32."""
    codes = np.arange(256, dtype=np.uint16)
    if dtype == "F8_E5M2":
        return (codes << 8).view(np.float16).astype(np.float32)
    exponent, mantissa = (codes >> 3 & 15).astype(np.int32), (codes & 7).astype(np.float64)
    magnitude = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(8 + mantissa, exponent - 10))
    magnitude[codes & 127 == 127] = np.nan
    return np.where(codes >> 7, -magnitude, magnitude).astype(np.float32)
