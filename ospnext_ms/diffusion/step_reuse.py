"""Which steps of a sampler need no call of the blocks (MagCache, arXiv 2506.09045). NumPy only.

What the blocks add to the hidden states, the residual, changes little from step to step: mainly its magnitude falls,
and it does so alike for all prompts. Where the ratios of its magnitudes say that the last residual still serves, the
step reuses it. Which steps do is known before a run, so compiled graphs stay what they are.
"""

import math
from collections.abc import Sequence


def reused_steps(ratios: Sequence[float], threshold: float, max_reused: int, first_share: float) -> list[bool]:
    """For each step, whether it reuses the residual of the last computed one.

    Args:
        ratios: |residual of the step| / |residual of the step before|; that of step 0 is not looked at.
        threshold: what the sum of |1 - magnitude / magnitude of the computed residual| over the steps that reuse it
            stays below. max_reused: steps in a row that reuse one residual, at most.
        first_share: share of the steps at the beginning that are all computed.
    """
    reused = []
    magnitude, error, run = 1.0, 0.0, 0
    for i, ratio in enumerate(ratios):
        magnitude, run = magnitude * ratio, run + 1
        error += abs(1 - magnitude)
        reuses = i >= max(1, math.ceil(first_share * len(ratios))) and error < threshold and run <= max_reused
        if not reuses:
            magnitude, error, run = 1.0, 0.0, 0
        reused.append(reuses)
    return reused
