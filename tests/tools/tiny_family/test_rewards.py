"""The tiny family's reward on true clips: full marks for what was asked, fewer for another digit or direction."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the judge is scikit-learn's")

from tools.tiny_family import digits  # noqa: E402
from tools.tiny_family.rewards import DigitAndDirection, movement, wanted  # noqa: E402


@pytest.fixture(scope="module")
def clips():
    """True clips of ten digits moving right, with their prompts."""
    made = [digits.make_clip(np.random.default_rng([5, i]), digit=i, direction="right", two_digits=False)
            for i in range(10)]
    return np.stack([clip for clip, _, _ in made]), [caption for _, caption, _ in made]


@pytest.mark.parametrize("frames", [17, 5])
def test_true_clips_score_high_and_wrong_prompts_low(clips, frames):
    reward = DigitAndDirection(direction_weight=0.25)
    videos, prompts = clips[0][:, :frames], clips[1]
    scores, parts = reward(videos, prompts)
    assert set(parts) == {"digit_probability", "digit_right", "direction"}
    assert parts["digit_right"].mean() >= 0.9
    assert parts["direction"].mean() > 0.9
    others = [prompts[(i + 1) % 10] for i in range(10)]
    wrong_digit, _ = reward(videos, others)
    assert wrong_digit.mean() < scores.mean() - 0.3
    wrong_way = reward(videos, [prompt.replace("right", "left") for prompt in prompts])[1]["direction"]
    assert wrong_way.max() == 0


def test_an_empty_clip_scores_nothing():
    scores, _ = DigitAndDirection(direction_weight=0.25)(np.zeros((1, 17, 128, 128, 3), np.uint8), ["a 3 moving left"])
    assert scores[0] == 0


def test_wanted():
    assert wanted("a bright seven quickly drifting up") == (7, "up")
    assert wanted("a 0 standing still") == (0, "still")
    for prompt in ("a dog moving left", "a 3 and a 5 moving left", "a 3 moving left then right"):
        with pytest.raises(ValueError, match="does not ask for one digit"):
            wanted(prompt)


def test_movement():
    assert movement((8, 0), "right", 8) == pytest.approx(1)
    assert movement((4, 0), "right", 8) == pytest.approx(0.5)
    assert movement((0, -20), "up", 8) == pytest.approx(1)
    assert movement((20, 20), "down", 8) == pytest.approx(0.5**0.5)
    assert movement((1, 0), "still", 8) == 1
    assert movement((16, 0), "still", 8) == 0


def test_weight():
    with pytest.raises(ValueError, match="direction_weight is 2"):
        DigitAndDirection(2)
