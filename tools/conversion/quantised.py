"""Weights on their way into HiF8, slice by slice: see ospnext_ms.storage.hif8_weights for what is written."""

import math

import numpy as np

from ospnext_ms import hif8_format as hif8
from ospnext_ms.storage.hif8_weights import SCALE_SUFFIX, quantised_names
from ospnext_ms.storage.safetensors_io import DTYPE_BYTES, ArrayTensor

_STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class HiF8Codes:
    """The codes of a floating-point tensor as something to write: those that training computes with.

    `scale` is what decoded codes are multiplied by, fp32; `error`, once written, the relative Frobenius error of the
    weights read back.
    """

    dtype = "U8"

    def __init__(self, tensor):
        self.tensor = tensor
        self.shape = tuple(tensor.shape)
        self.nbytes = math.prod(self.shape)
        amax = max((np.abs(part).max() for part in numbers(tensor) if part.size), default=0)
        self.factor = hif8.scale_of(amax, hif8.SCALE_MAX_FORWARD)
        self.scale = 1 / self.factor
        self.error = None

    def chunks(self):
        """The codes' bytes in order."""
        wrong = total = 0.0
        for part in numbers(self.tensor):
            codes = hif8.encode(part * self.factor)
            difference = hif8.decode(codes) * self.scale - part
            wrong += float(np.square(difference, dtype=np.float64).sum())
            total += float(np.square(part, dtype=np.float64).sum())
            yield codes.reshape(-1).data
        self.error = math.sqrt(wrong / total) if total else 0.0


def quantise(tensors):
    """(tensors to write, {name: HiF8Codes}): the matrices of the recipe as codes and scales, the others as they are."""
    codes = {name: HiF8Codes(tensors[name]) for name in quantised_names(tensors)}
    if not codes:
        raise ValueError("no weight of this checkpoint is stored in HiF8: it has no blocks.N.self_attn.q.weight")
    result = {}
    for name, tensor in tensors.items():
        result[name] = codes.get(name, tensor)
        if name in codes:
            result[name + SCALE_SUFFIX] = ArrayTensor(np.array([codes[name].scale], np.float32))
    return result, codes


def numbers(tensor):
    """The tensor's numbers in order, fp32, a chunk at a time."""
    stored, size, rest = np.dtype(_STORED[tensor.dtype]), DTYPE_BYTES[tensor.dtype], b""
    for chunk in tensor.chunks():
        chunk = rest + bytes(chunk) if rest else chunk
        whole = len(chunk) - len(chunk) % size
        rest = bytes(chunk[whole:])
        numbers = np.frombuffer(chunk[:whole], stored)
        if tensor.dtype == "BF16":
            yield (numbers.astype(np.uint32) << 16).view(np.float32)
        else:
            yield numbers.astype(np.float32)
