"""What is asked of a model, and the statistics of how often it delivers. NumPy only; knows no backend."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tools.tiny_family import digits, judge

MOVES = ("left", "right", "up", "down")
LATENT_SHAPE = (16, (digits.NUM_FRAMES - 1) // 4 + 1, digits.FRAME_SIZE // 8, digits.FRAME_SIZE // 8)
Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Prompt:
    """A caption and what a video of it has to show."""

    text: str
    digit: int
    direction: str


def balanced_prompts(count, seed):
    """`count` prompts of one moving digit each; every 40 in a row hold every digit with every direction once. Size,
    speed, brightness and wording are drawn; prompt i depends on (seed, i) alone."""
    prompts = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        label = digits.draw_label(rng, digit=i % 10, direction=MOVES[i // 10 % len(MOVES)], two_digits=False)
        prompts.append(Prompt(digits.caption_of(label, rng), label.digit, label.direction))
    return prompts


def noise_of(seed, index):
    """Starting noise of sample `index`, float32 [16, T, h, w]: NumPy's, so that every backend starts from the same."""
    return np.random.default_rng([seed, index]).standard_normal(LATENT_SHAPE, dtype=np.float32)


def judge_all(clips, workers=8):
    """Verdicts on clips uint8 [N, F, H, W, 3]."""
    judge.digit_classifier()
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(judge.judge_clip, clips))


def score(verdicts, prompts):
    """(digit right, direction right): a boolean array for each property."""
    pairs = list(zip(verdicts, prompts, strict=True))
    return (np.array([verdict.digit == prompt.digit for verdict, prompt in pairs]),
            np.array([verdict.direction == prompt.direction for verdict, prompt in pairs]))


def accuracy(right):
    """Share of True with Wilson's 95 % interval: {"share", "low", "high", "count"}."""
    right = np.asarray(right, bool)
    count = len(right)
    if not count:
        raise ValueError("no samples: at least 1 is needed")
    share = right.mean()
    spread = Z_95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return {"share": round(float(share), 4), "low": round(float(centre - half), 4),
            "high": round(float(centre + half), 4), "count": count}


def paired_difference(right, baseline):
    """Mean of right - baseline over the same samples with its 95 % interval (normal approximation, which needs some
    hundred samples): {"difference", "low", "high", "count"}."""
    difference = np.asarray(right, float) - np.asarray(baseline, float)
    count = len(difference)
    if count < 2:
        raise ValueError(f"{count} pairs: at least 2 are needed")
    mean, half = difference.mean(), Z_95 * difference.std(ddof=1) / math.sqrt(count)
    return {"difference": round(float(mean), 4), "low": round(float(mean - half), 4),
            "high": round(float(mean + half), 4), "count": count}


def agreement(verdicts, others):
    """Share of samples on which two judgements of digit and direction are the same."""
    pairs = list(zip(verdicts, others, strict=True))
    same = [a.digit == b.digit and a.direction == b.direction for a, b in pairs]
    return accuracy(same)
