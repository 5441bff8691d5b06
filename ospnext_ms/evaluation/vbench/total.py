"""From the raw scores of 16 dimensions to VBench's quality, semantic and total score."""

from collections.abc import Mapping
from dataclasses import dataclass

from ospnext_ms.evaluation.vbench.dimensions import DIMENSIONS, GROUP_WEIGHTS

# Totals of arXiv 2605.28691 in percent, to be beside.
PUBLISHED = {"Wan2.1 14B": 83.69, "OSP-Next": 83.73, "OSP-Next HiF8": 83.29}


@dataclass(frozen=True)
class Total:
    """Raw and normalised scores of every dimension, and their means; all as fractions."""

    scores: dict[str, float]
    normalised: dict[str, float]
    quality: float
    semantic: float
    total: float


def add_up(scores: Mapping[str, float]) -> Total:
    """The total of raw scores, fractions by dimension.

    Raises:
        ValueError: a dimension is missing. Upstream's script counts it as 0 and says nothing.
    """
    missing = [name for name in DIMENSIONS if name not in scores]
    if missing:
        raise ValueError(f"no score for {', '.join(missing)}; the total needs all {len(DIMENSIONS)} dimensions: score "
                         "the missing ones (vbench score --dimensions ...), or add their result files")
    normalised = {name: dimension.normalise(scores[name]) for name, dimension in DIMENSIONS.items()}
    quality, semantic = _mean(normalised, "quality"), _mean(normalised, "semantic")
    weights = GROUP_WEIGHTS["quality"], GROUP_WEIGHTS["semantic"]
    total = (weights[0] * quality + weights[1] * semantic) / sum(weights)
    return Total({name: float(scores[name]) for name in DIMENSIONS}, normalised, quality, semantic, total)


def _mean(normalised: Mapping[str, float], group: str) -> float:
    members = [dimension for dimension in DIMENSIONS.values() if dimension.group == group]
    return sum(d.weight * normalised[d.name] for d in members) / sum(d.weight for d in members)
