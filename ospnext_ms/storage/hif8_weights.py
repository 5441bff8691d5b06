"""Weights stored as HiF8: NAME holds the codes (uint8), NAME_hif8_scale one fp32 number; a weight is value * scale.

Stored so are the matrices that the recipe computes with in HiF8: q, k, v, o and both of the feed-forward network in
every block of the transformer. Quantising what is read back gives the same codes.
"""

import os
import re
from collections.abc import Iterable, Mapping
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
