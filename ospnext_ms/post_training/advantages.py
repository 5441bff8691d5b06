"""Rewards of groups -> advantages, on the host in float64."""

from dataclasses import dataclass

import numpy as np

SPREAD_FLOOR = 1e-4


@dataclass(frozen=True)
class Advantages:
    """`values` float32 [n], 0 where `used` (bool [n]) is False; how many groups were left out, and why.

    `zero_spread`: groups in which every video got the same reward, so that none is better. `incomplete`: groups of
    which fewer than two videos have a reward at all.
    """

    values: np.ndarray
    used: np.ndarray
    groups: int
    zero_spread: int
    incomplete: int


def group_advantages(rewards, groups, limit):
    """(reward - mean) / (std + 1e-4) of the video's own group, within +-limit (Flow-GRPO, arXiv 2505.05470).

    Args:
        rewards: [n], NaN where a video has none. groups: int [n], which prompt a video was made for.
        limit: largest absolute value.

    Raises:
        ValueError: an infinite reward.
    """
    rewards, groups = np.asarray(rewards, np.float64), np.asarray(groups)
    if np.isinf(rewards).any():
        raise ValueError(f"the reward of video {int(np.flatnonzero(np.isinf(rewards))[0])} is infinite")
    values, used = np.zeros(len(rewards)), np.zeros(len(rewards), bool)
    numbers = np.unique(groups)
    zero_spread = incomplete = 0
    for number in numbers:
        members = np.flatnonzero((groups == number) & ~np.isnan(rewards))
        if len(members) < 2:
            incomplete += 1
            continue
        own = rewards[members]
        if own.max() == own.min():
            zero_spread += 1
            continue
        values[members] = np.clip((own - own.mean()) / (own.std() + SPREAD_FLOOR), -limit, limit)
        used[members] = True
    return Advantages(values.astype(np.float32), used, len(numbers), zero_spread, incomplete)


class Lessons:
    """Notices iterations that teach nothing because no group has two videos with different rewards.

    Args:
        limit: how many of them in a row end the run, None for never.
    """

    def __init__(self, limit):
        self.limit = limit
        self._in_a_row = 0

    def __call__(self, iteration, figures):
        """A warning, or None where something was learned.

        Args:
            iteration: counted from 1. figures: of the iteration, see figures.py.

        Raises:
            ValueError: the limit is reached.
        """
        if figures["updates"]:
            self._in_a_row = 0
            return None
        self._in_a_row += 1
        text = (f"iteration {iteration}: nothing is learned, as all videos of a group have the same reward "
                f"({figures['zero_spread_share']:.0%} of the groups) or none ({figures['incomplete_groups']} groups); "
                f"{self._in_a_row} such iterations in a row")
        if self.limit is None or self._in_a_row < self.limit:
            return text
        raise ValueError(f"{text}, which policy.equal_rewards_limit does not allow: take rewards that tell the videos "
                         "apart, or a larger group or noise")
