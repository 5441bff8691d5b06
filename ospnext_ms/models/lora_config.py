"""Size and place of low-rank adapters. Framework-free, so that tools can read adapters without MindSpore."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Which linears get adapters, and how large they are.

    A target fits a layer whose name equals it or ends in "." and it: `q` fits blocks.0.self_attn.q (as in PEFT).
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}; it must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"lora.alpha is {self.alpha}; it must be a number above 0")
        if not self.targets or not all(isinstance(target, str) and target for target in self.targets):
            raise ValueError(f"lora.targets is {list(self.targets)}; it must be a list of layer names such as q, k, v")

    @property
    def scaling(self) -> float:
        """alpha / rank, the factor of B A."""
        return self.alpha / self.rank

    def fits(self, layer: str) -> bool:
        """True for a layer that gets an adapter."""
        return any(layer == target or layer.endswith(f".{target}") for target in self.targets)
