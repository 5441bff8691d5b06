"""VBench's 16 dimensions, their bounds and weights, and what they add up to.

Bounds and weights are those of upstream's scripts/constant.py, which its leaderboard uses.
"""

import difflib
from dataclasses import dataclass
from typing import Literal

Group = Literal["quality", "semantic"]
# Videos of a prompt that upstream looks for.
SAMPLES = 5
# The total is (4 quality + semantic) / 5.
GROUP_WEIGHTS: dict[Group, float] = {"quality": 4.0, "semantic": 1.0}


@dataclass(frozen=True)
class Dimension:
    """A raw score from `low` to `high` counts as 0 to 1, with `weight` in the mean of its group.

    The official suite has `prompts` for it, of 5 videos each.
    """

    name: str
    group: Group
    prompts: int
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0

    @property
    def title(self) -> str:
        """The name as people write it."""
        return self.name.replace("_", " ")

    def normalise(self, score: float) -> float:
        """Raw score in [0, 1] between the bounds; outside of them below 0 or above 1, as upstream has it."""
        return (score - self.low) / (self.high - self.low)


DIMENSIONS = {dimension.name: dimension for dimension in (
    Dimension("subject_consistency", "quality", 72, low=0.1462),
    Dimension("background_consistency", "quality", 86, low=0.2615),
    Dimension("temporal_flickering", "quality", 75, low=0.6293),
    Dimension("motion_smoothness", "quality", 72, low=0.706, high=0.9975),
    Dimension("dynamic_degree", "quality", 72, weight=0.5),
    Dimension("aesthetic_quality", "quality", 93),
    Dimension("imaging_quality", "quality", 93),
    Dimension("object_class", "semantic", 79),
    Dimension("multiple_objects", "semantic", 82),
    Dimension("human_action", "semantic", 100),
    Dimension("color", "semantic", 85),
    Dimension("spatial_relationship", "semantic", 84),
    Dimension("scene", "semantic", 86, high=0.8222),
    Dimension("appearance_style", "semantic", 90, low=0.0009, high=0.2855),
    Dimension("temporal_style", "semantic", 100, high=0.364),
    Dimension("overall_consistency", "semantic", 93, high=0.364),
)}


def share_of_total(dimension: Dimension) -> float:
    """How far the total moves with the raw score of a dimension, all else equal (both in the same unit)."""
    group = sum(other.weight for other in DIMENSIONS.values() if other.group == dimension.group)
    share = GROUP_WEIGHTS[dimension.group] / sum(GROUP_WEIGHTS.values())
    return share * dimension.weight / group / (dimension.high - dimension.low)


def check_names(names: list[str]) -> list[str]:
    """The names, each once, in VBench's order; ValueError for one that no dimension has."""
    for name in names:
        if name not in DIMENSIONS:
            close = difflib.get_close_matches(name, DIMENSIONS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"they are {', '.join(DIMENSIONS)}"
            raise ValueError(f"VBench has no dimension {name!r}; {hint}")
    return [name for name in DIMENSIONS if name in names]
