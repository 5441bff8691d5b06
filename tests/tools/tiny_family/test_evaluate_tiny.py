import dataclasses
import json
import math

import numpy as np
import pytest

from tools.tiny_family import evaluate_tiny
from tools.tiny_family.evaluation import (
    MOVES,
    accuracy,
    agreement,
    balanced_prompts,
    noise_of,
    paired_difference,
    score,
)
from tools.tiny_family.judge import Verdict
from tools.tiny_family.recipe import load_recipe


def verdict(digit, direction):
    return Verdict(digit, direction, (0.0,) * 10, (0.0, 0.0))


def test_wilson_interval():
    # 8 of 10: the textbook's values.
    result = accuracy([True] * 8 + [False] * 2)
    assert (result["share"], result["low"], result["high"], result["count"]) == (0.8, 0.4902, 0.9433, 10)
    assert accuracy([True] * 50)["high"] == 1.0
    assert accuracy([True] * 50)["low"] == pytest.approx(50 / (50 + 1.959964**2), abs=1e-4)
    with pytest.raises(ValueError, match="at least 1"):
        accuracy([])


def test_paired_interval_in_closed_form():
    """For paired yes/no samples: variance of the mean = (b + c - (b - c)^2 / n) / (n (n - 1)), McNemar's b and c."""
    rng = np.random.default_rng(0)
    right, baseline = rng.random(500) < 0.9, rng.random(500) < 0.8
    b, c, n = int((right & ~baseline).sum()), int((baseline & ~right).sum()), 500
    half = 1.959964 * math.sqrt((b + c - (b - c) ** 2 / n) / (n * (n - 1)))
    result = paired_difference(right, baseline)
    assert result["difference"] == pytest.approx((b - c) / n, abs=1e-4)
    assert result["low"] == pytest.approx((b - c) / n - half, abs=1e-4)
    assert result["high"] == pytest.approx((b - c) / n + half, abs=1e-4)
    assert paired_difference(baseline, right)["difference"] == -result["difference"]
    with pytest.raises(ValueError, match="at least 2"):
        paired_difference([True], [True])


def test_pairing_narrows_the_interval():
    right = np.arange(400) % 10 != 0
    other = right.copy()
    other[1] = False
    result = paired_difference(other, right)
    assert result["high"] - result["low"] < 0.02


def test_forty_prompts_hold_every_digit_with_every_direction_once():
    prompts = balanced_prompts(80, seed=3)
    for half in (prompts[:40], prompts[40:]):
        assert {(p.digit, p.direction) for p in half} == {(d, m) for d in range(10) for m in MOVES}
    assert all(prompt.direction in prompt.text for prompt in prompts)
    assert balanced_prompts(5, seed=3) == prompts[:5]


def test_scores_and_agreement():
    prompts = [dataclasses.replace(prompt, digit=1, direction="up") for prompt in balanced_prompts(3, seed=0)]
    seen = [verdict(1, "up"), verdict(1, "down"), verdict(2, "up")]
    digit, direction = score(seen, prompts)
    assert digit.tolist() == [True, True, False]
    assert direction.tolist() == [True, False, True]
    others = [verdict(1, "up"), verdict(1, "up"), verdict(3, "up")]
    assert agreement(seen, others)["share"] == pytest.approx(1 / 3, abs=1e-4)


def test_noise_is_standard_and_belongs_to_its_sample():
    noise = noise_of(11, 4)
    assert noise.shape == (16, 5, 16, 16)
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.03
    assert noise.std() == pytest.approx(1, abs=0.02)
    np.testing.assert_array_equal(noise, noise_of(11, 4))
    assert not np.array_equal(noise, noise_of(11, 5))


def test_command_line_changes_the_sampling():
    recipe = load_recipe()
    arguments = evaluate_tiny.parse_arguments(["--backend", "torch", "--steps", "7"])
    assert evaluate_tiny.sampling_of(recipe, arguments) == dataclasses.replace(recipe.sampling, num_steps=7)
    with pytest.raises(SystemExit):
        evaluate_tiny.parse_arguments(["--backend", "torch", "--samples", "1"])


def test_report_compares_models_and_backends(monkeypatch, tmp_path, capsys):
    """The bookkeeping, with clips of known content in the place of the networks'."""
    from tools.tiny_family import digits

    def drawn(model, prompts):
        rng = np.random.default_rng(0)
        clips = [digits.make_clip(rng, digit=p.digit, direction=p.direction, two_digits=False)[0] for p in prompts]
        if model == "sparse":
            clips[0] = clips[0][::-1]
        return np.stack(clips)

    monkeypatch.setattr(evaluate_tiny, "ceiling", lambda *_: {"held_out_scans": 1.0,
                                                              "held_out_clips_through_vae": accuracy([True])})
    monkeypatch.setattr(evaluate_tiny, "make_clips",
                        lambda arguments, recipe, backend, model, prompts, noise: (drawn(model, prompts), 2.0))
    command = ["--backend", "torch", "--model", "both", "--samples", "10", "--compare", "--output", str(tmp_path)]
    evaluate_tiny.main([*command, "--no-judge"])
    assert "judge" not in capsys.readouterr().out
    evaluate_tiny.main(command)
    out = capsys.readouterr().out
    assert "judge, held-out through VAE" in out
    assert "sparse - full, direction" in out
    report = json.loads((tmp_path / "torch_both.json").read_text())
    assert report["models"]["full"]["direction"]["share"] == 1.0
    assert report["models"]["sparse"]["direction"]["share"] == 0.9
    assert report["sparse_minus_full"]["direction"]["difference"] == -0.1
    assert report["models"]["full"]["verdicts_equal_to_mindspore"]["share"] == 1.0
    assert report["models"]["full"]["seconds_per_video"] == 0.2
    assert (tmp_path / "torch_sparse.png").is_file()
