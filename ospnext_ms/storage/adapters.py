"""Low-rank adapters as numbers, whatever file they come from, and several of them as one. No framework is needed."""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ospnext_ms.storage.safetensors_io import TensorValues

# A [rank, in] and B [out, rank] of a layer.
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class StoredAdapter:
    """What an adapter adds to a network.

    pairs: {layer: (A [rank, in], B [out, rank])} fp32; that of a convolution has its kernel's axes in A, or in both.
    scalings: {layer: factor of B A}, alpha / rank. differences: {parameter: what is added to it} fp32, where weights,
    biases, norms or modulation were trained too.
    """

    pairs: Mapping[str, Pair]
    scalings: Mapping[str, float]
    differences: Mapping[str, np.ndarray] = field(default_factory=dict)


def combine(adapters: Iterable[tuple[StoredAdapter, float]]) -> tuple[dict[str, Pair], dict[str, np.ndarray]]:
    """({layer: (A, B)}, {parameter: difference}) of several (StoredAdapter, strength), together.

    Scalings and strengths are multiplied into B, and the A and B of a layer stacked along the rank, so that what is
    added is x A^T B^T. Convolutions become differences of their weights.
    """
    parts: dict[str, list[Pair]] = {}
    differences: dict[str, np.ndarray] = {}
    for adapter, strength in adapters:
        for layer, (a, b) in adapter.pairs.items():
            factor = adapter.scalings[layer] * strength
            if a.ndim == b.ndim == 2:
                parts.setdefault(layer, []).append((a, (b.astype(np.float64) * factor).astype(np.float32)))
            else:
                _add(differences, f"{layer}.weight", low_rank_product(a, b, factor))
        for name, difference in adapter.differences.items():
            _add(differences, name, strength * difference.astype(np.float64))
    pairs = {layer: (np.concatenate([a for a, _ in several]), np.concatenate([b for _, b in several], axis=1))
             for layer, several in parts.items()}
    return pairs, differences


def low_rank_product(a: np.ndarray, b: np.ndarray, factor: float) -> np.ndarray:
    """factor * B A in float64, [out, in]; the axes of a convolution's kernel are part of `in`."""
    return factor * (b.reshape(len(b), -1).astype(np.float64) @ a.reshape(len(a), -1))


def _add(differences: dict[str, np.ndarray], name: str, difference: np.ndarray) -> None:
    known = differences.get(name)
    differences[name] = difference if known is None else known + difference.reshape(known.shape)


def with_differences(tensors: Mapping[str, TensorValues], differences: Mapping[str, np.ndarray],
                     origin: str | os.PathLike) -> dict[str, TensorValues]:
    """The stored tensors of a checkpoint {name: tensor} with something added to those that `differences` names.

    Raises:
        ValueError: a difference of a parameter that the checkpoint has not, or of another size (listed).
    """
    odd = [f"{name} has {tensors[name].shape if name in tensors else 'no such parameter'} for {difference.shape}"
           for name, difference in differences.items()
           if name not in tensors or math.prod(tensors[name].shape) != difference.size]
    if odd:
        raise ValueError(f"the adapter does not fit {origin} ({len(odd)} differences): {'; '.join(odd[:5])}")
    return {name: ChangedTensor(tensor, differences[name]) if name in differences else tensor
            for name, tensor in tensors.items()}


@dataclass(frozen=True)
class ChangedTensor:
    """A stored tensor with something added to it: looks like a stored one to whoever loads it."""

    tensor: TensorValues
    difference: np.ndarray

    @property
    def dtype(self) -> str:
        """That of the stored tensor."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the stored tensor."""
        return self.tensor.shape

    def numpy(self) -> np.ndarray:
        """The sum, fp32, rounded once."""
        added = self.difference.reshape(self.shape).astype(np.float64)
        return (self.tensor.numpy().astype(np.float64) + added).astype(np.float32)
