"""Several rewards as one: weighted, each in its own process, with failures raised or counted as configured."""

from dataclasses import dataclass

import numpy as np

from ospnext_ms.post_training.rewards.process import RewardError, RewardProcess


@dataclass(frozen=True)
class Scores:
    """`total` float64 [n], NaN where a video has no reward; `parts` {"reward" or "reward/part": [n]}.

    `failed` says how many videos each reward gave no number for, `messages` why.
    """

    total: np.ndarray
    parts: dict
    failed: dict
    messages: tuple

    @staticmethod
    def joined(several):
        """The scores of several batches as those of one; a reward that failed on one of them has no parts there."""
        several = list(several)
        return Scores(np.concatenate([s.total for s in several]),
                      {name: np.concatenate([s.parts.get(name, np.full(len(s.total), np.nan)) for s in several])
                       for name in dict.fromkeys(name for s in several for name in s.parts)},
                      {name: sum(s.failed[name] for s in several) for name in several[0].failed},
                      tuple(message for s in several for message in s.messages))


class CombinedReward:
    """total = sum of weight * score over the rewards. A reward of weight 0 is a guard: watched, not sought.

    Args:
        sections: RewardSections.
    """

    def __init__(self, sections):
        self.sections = tuple(sections)
        self._processes = [
            RewardProcess(section.name, section.callable, section.arguments, section.python, section.timeout_seconds,
                          section.start_timeout_seconds, section.retries) for section in self.sections
        ]

    def start(self):
        """Starts all processes, so that a reward that cannot be made is known before the first video is: RewardError,
        which names it."""
        for section, process in zip(self.sections, self._processes, strict=True):
            try:
                process.start()
            except RewardError as error:
                raise RewardError(f"reward {section.name} ({section.callable}): {error}") from error

    def close(self):
        """Ends all processes."""
        for process in self._processes:
            process.close()

    def submit(self, frames, prompts):
        """Asks all rewards about frames uint8 [n, F, H, W, 3] and returns a function that waits for the Scores.

        It raises RewardError where a reward with `on_failure: error` fails or gives a number that is not finite.
        """
        futures = [process.submit(frames, prompts) for process in self._processes]
        return lambda: self._combine(futures, list(prompts))

    def _combine(self, futures, prompts):
        total, parts, failed, messages = np.zeros(len(prompts)), {}, {}, []
        for section, future in zip(self.sections, futures, strict=True):
            try:
                scores, own_parts = future.result()
            except RewardError as error:
                if section.on_failure == "error":
                    raise
                scores, own_parts = np.full(len(prompts), np.nan), {}
                messages.append(str(error))
            bad = np.flatnonzero(~np.isfinite(scores))
            if len(bad) and section.on_failure == "error":
                raise RewardError(f"reward {section.name} ({section.callable}) gave {scores[bad[0]]} for the prompt "
                                  f"{prompts[bad[0]]!r} and {len(bad)} of {len(prompts)} videos in all; on_failure: "
                                  "drop would leave such videos out")
            scores = np.where(np.isfinite(scores), scores, np.nan)
            failed[section.name] = len(bad)
            if section.weight:
                total = total + section.weight * scores
            parts[section.name] = scores
            parts |= {f"{section.name}/{part}": values for part, values in own_parts.items()}
        # fp32, in which several processes tell one another: the same numbers whatever their number.
        return Scores(total.astype(np.float32).astype(np.float64), parts, failed, tuple(messages))
