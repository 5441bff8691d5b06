"""Weights stored as HiF8: NAME holds the codes (uint8), NAME_hif8_scale one fp32 number; a weight is value * scale.

Stored so are the matrices that the recipe computes with in HiF8: q, k, v, o and both of the feed-forward network in
every block of the transformer. Quantising what is read back gives the same codes.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ospnext_ms import hif8_format as hif8
from ospnext_ms.storage.safetensors_io import TensorValues

SCALE_SUFFIX = "_hif8_scale"
QUANTISED = re.compile(r"blocks\.\d+\.((self_attn|cross_attn)\.[qkvo]|ffn\.[02])\.weight")


@dataclass(frozen=True)
class HiF8Tensor:
    """A stored weight: looks like an fp32 tensor to whoever loads it."""

    codes: TensorValues
    scale: TensorValues
    dtype = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.codes.shape

    def numpy(self) -> np.ndarray:
        """The weight, fp32."""
        return hif8.decode(self.codes.numpy()) * self.scale.numpy().reshape(())


def join_codes(path: str | os.PathLike, stored: Mapping[str, TensorValues]) -> dict[str, TensorValues]:
    """The tensors {name: tensor} of `path`, with each pair of codes and scale as one HiF8Tensor.

    Raises:
        ValueError: codes without scale, a scale without codes, or of another dtype or size (listed).
    """
    codes = {name for name, tensor in stored.items() if tensor.dtype == "U8"}
    scales = {name.removesuffix(SCALE_SUFFIX): tensor for name, tensor in stored.items() if name.endswith(SCALE_SUFFIX)}
    odd = sorted(codes.symmetric_difference(scales))
    odd += sorted(name for name, scale in scales.items() if scale.dtype != "F32" or scale.shape != (1,))
    if odd:
        raise ValueError(f"{path}: HiF8 codes (uint8) and scales (fp32 [1], NAME{SCALE_SUFFIX}) do not go together: "
                         f"{', '.join(odd[:10])}")
    return {name: HiF8Tensor(tensor, scales[name]) if name in scales else tensor
            for name, tensor in stored.items() if not name.endswith(SCALE_SUFFIX)}


def quantised_names(names: Iterable[str]) -> list[str]:
    """Those of `names` that are stored as HiF8, in order."""
    return [name for name in names if QUANTISED.fullmatch(name)]


class HeldCodes:
    """A stored weight of any dtype as the codes that a layer holds: its numbers, rounded to the dtype that they would
    be held in otherwise, under per-tensor scaling.

    Args:
        tensor: stored tensor with shape and numpy(). scale_max: see hif8_format.encode_scaled. rounded: a function from
            fp32 numbers to those of that dtype, fp32.
    """

    dtype = "U8"

    def __init__(self, tensor: TensorValues, scale_max: float, rounded: Callable):
        self.tensor, self.scale_max, self.rounded = tensor, scale_max, rounded
        self.shape = tuple(tensor.shape)
        self.scale: np.ndarray | None = None

    def numpy(self) -> np.ndarray:
        """The codes."""
        codes, self.scale = hif8.encode_scaled(self.rounded(self.tensor.numpy().astype(np.float32)), self.scale_max)
        return codes


@dataclass(frozen=True)
class HeldScale:
    """The scale of HeldCodes as something to load: fp32 [1]."""

    codes: HeldCodes
    dtype = "F32"
    shape = (1,)

    def numpy(self) -> np.ndarray:
        """The scale; codes are read for it where they have not been yet."""
        if self.codes.scale is None:
            self.codes.numpy()
        assert self.codes.scale is not None
        return self.codes.scale


def as_held(tensors: Mapping, scales: Mapping, scale_max: float, rounded: Callable) -> dict:
    """The tensors, those of `scales` ({name of a weight: name of its scale}) as HeldCodes, and their scales beside
    them. What is missing stays missing. scale_max, rounded: see HeldCodes."""
    held = dict(tensors)
    for name, scale in scales.items():
        if name in held:
            held[name] = HeldCodes(held[name], scale_max, rounded)
            held[scale] = HeldScale(held[name])
    return held
