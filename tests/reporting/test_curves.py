"""Pictures of a run."""

import numpy as np

from ospnext_ms.reporting.curves import draw_loss, draw_rewards, running_mean


def test_the_running_mean_is_cut_at_the_ends():
    np.testing.assert_allclose(running_mean([1, 2, 3, 10], 3), [1.5, 2, 5, 6.5])


def test_the_loss_is_drawn(tmp_path):
    records = [{"step": i, "loss": 2.0 / (i + 1)} for i in range(1, 30)] + [{"step": 0, "eval_loss": 2.0},
                                                                            {"step": 29, "eval_loss": 0.1}]
    path = draw_loss(records, tmp_path, "RANDOM DATA")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert path.stat().st_size > 5000


def test_rewards_are_drawn_without_what_was_not_measured(tmp_path):
    records = [{"step": step, "reward_mean": 0.5, "kl": None, "clip_fraction": 0.25} for step in (1, 2)]
    path = draw_rewards([{"step": 0, "eval/reward": 0.5, "eval/standard_error": 0.125}, *records], tmp_path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert path.stat().st_size > 5000


def test_what_is_no_number_is_not_drawn(tmp_path):
    odd = [{"step": 3, name: value} for value in ("x", [1], {}, float("nan"), float("inf"), 10**400, None)
           for name in ("loss", "eval_loss", "reward_mean", "eval/reward", "eval/standard_error", "kl")]
    records = [{"step": step, "loss": 1.0, "eval/reward": 0.5, "eval/standard_error": -1.0} for step in (1, 2)]
    assert draw_loss(records + odd, tmp_path).read_bytes()[:4] == b"\x89PNG"
    assert draw_rewards(records + odd, tmp_path).read_bytes()[:4] == b"\x89PNG"
    assert draw_loss(odd, tmp_path) is None
