"""What an iteration's figures say."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from ospnext_ms.post_training.figures import update_figures
from ospnext_ms.post_training.rewards.combined import Scores
from ospnext_ms.reporting.curves import draw_rewards


def figures(with_kl):
    scores = SimpleNamespace(total=np.array([0.5, np.nan, 1.0]), parts={"a": np.array([1.0, np.nan, 3.0])},
                             failed={"a": 1})
    advantages = SimpleNamespace(zero_spread=1, groups=4, incomplete=0)
    update = {"loss": 1.0, "norm": 2.0, "factor": 1.0, "rate": 1e-3, "rescoring": 0.0, "clip": 0.1,
              "ratios": np.array([1.0, 1.2]), "kls": np.array([0.25, 0.75])}
    return update_figures(scores, advantages, [update], with_kl)


def test_figures_of_an_iteration():
    found = figures(True)
    assert found["reward_mean"] == pytest.approx(0.75)
    assert found["reward/a"] == pytest.approx(2.0)
    assert (found["failed/a"], found["zero_spread_share"]) == (1, 0.25)
    assert (found["clip_fraction"], found["kl"]) == (0.5, 0.5)
    assert found["ratio_deviation_before"] == pytest.approx(0.2)
    assert found["ratio_deviation_after"] is None


def test_a_kl_that_is_not_computed_is_not_said_to_be_0(tmp_path):
    assert figures(False)["kl"] is None
    records = [{"step": step, **figures(False)} for step in (1, 2)]
    assert draw_rewards(records, tmp_path).stat().st_size > 5000


def test_what_no_video_has_is_no_number(tmp_path):
    scores = Scores(np.array([np.nan, np.nan]), {"a": np.array([np.nan, np.nan])}, {"a": 2}, ("it failed",))
    found = update_figures(scores, SimpleNamespace(zero_spread=0, groups=1, incomplete=1), [], False)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["reward/a"] is None
    records = [{"step": 1, "eval/reward": None, "eval/standard_error": None, **found},
               {"step": 2, "eval/reward": 0.5, "eval/standard_error": None, **found}]
    assert draw_rewards(records, tmp_path).stat().st_size > 5000
