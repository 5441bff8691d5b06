"""Does a clip show what its prompt asks for? A reward for post-training the tiny family, after the judge.

Named in yaml_configs/post_train/tiny.yaml as tools.tiny_family.rewards:DigitAndDirection.
"""

import numpy as np

from tools.tiny_family import digits, judge

MOVES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


class DigitAndDirection:
    """(1 - w) * probability of the asked digit + w * share of the movement that goes the asked way, both in [0, 1].

    A movement counts in full from the judge's threshold on, which is scaled to the length of the clip: a part of a
    clip moves a part of the way. Prompts name one digit; a still one is asked to move by less than the threshold.

    Args:
        direction_weight: w.
    """

    def __init__(self, direction_weight):
        if not 0 <= direction_weight <= 1:
            raise ValueError(f"direction_weight is {direction_weight}; it must be from 0 to 1")
        self.weight = direction_weight
        # Trained on first use, which takes seconds; now it counts as starting.
        judge.digit_classifier()

    def __call__(self, frames, prompts):
        rows = np.array([self._judge(clip, prompt) for clip, prompt in zip(frames, prompts, strict=True)])
        probability, right, movement = rows.T
        scores = (1 - self.weight) * probability + self.weight * movement
        return scores, {"digit_probability": probability, "digit_right": right, "direction": movement}

    def _judge(self, clip, prompt):
        digit, direction = wanted(prompt)
        verdict = judge.judge_clip(clip)
        if verdict.digit < 0:
            return 0.0, 0.0, 0.0
        threshold = judge.STILL_PIXELS * (len(clip) - 1) / (digits.NUM_FRAMES - 1)
        return (verdict.digit_probabilities[digit], float(verdict.digit == digit),
                movement(verdict.displacement, direction, threshold))


def wanted(prompt):
    """(digit, direction) that a caption of one digit asks for; ValueError where it does not."""
    words = prompt.lower().split()
    found = [int(word) if word in "0123456789" else digits.NUMBER_WORDS.index(word) for word in words
             if word in digits.NUMBER_WORDS or (len(word) == 1 and word in "0123456789")]
    moves = [word for word in words if word in MOVES]
    if len(found) != 1 or len(moves) > 1:
        raise ValueError(f"the prompt {prompt!r} does not ask for one digit and at most one direction")
    return found[0], moves[0] if moves else "still"


def movement(displacement, direction, threshold):
    """Share of a displacement (x, y) that goes the asked way, in [0, 1]; in full from `threshold` pixels on."""
    length = max(float(np.hypot(*displacement)), 1e-6)
    if direction == "still":
        return float(np.clip(2 - length / threshold, 0, 1))
    along = float(np.dot(displacement, MOVES[direction]))
    return max(0.0, along / length) * min(1.0, length / threshold)
