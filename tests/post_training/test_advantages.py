"""Advantages of a group's rewards."""

import numpy as np
import pytest

from ospnext_ms.post_training.advantages import Lessons, group_advantages


def test_advantages_against_the_formula():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(3, 5))
    advantages = group_advantages(rewards.ravel(), np.repeat([7, 1, 4], 5), 5.0)
    expected = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(advantages.values, expected.ravel(), rtol=1e-6)
    assert advantages.used.all()


def test_advantages_are_limited():
    rewards = np.array([0.0] * 99 + [1.0])
    assert group_advantages(rewards, np.zeros(100), 5.0).values.max() == 5.0


def test_zero_spread_and_missing_rewards_are_dropped_and_counted():
    rewards = [1.0, 1.0, 1.0, np.nan, 2.0, np.nan, 1.0, 3.0, np.nan]
    advantages = group_advantages(rewards, [0, 0, 0, 1, 1, 1, 2, 2, 2], 5.0)
    assert (advantages.groups, advantages.zero_spread, advantages.incomplete) == (3, 1, 1)
    assert advantages.used.tolist() == [False] * 6 + [True, True, False]
    np.testing.assert_allclose(advantages.values, [0] * 6 + [-1, 1, 0], atol=1e-3)


def test_an_infinite_reward_is_an_error():
    with pytest.raises(ValueError, match="video 1 is infinite"):
        group_advantages([0.0, np.inf], [0, 0], 5.0)


def test_iterations_that_teach_nothing_are_told_and_end_the_run():
    nothing = {"updates": 0, "zero_spread_share": 0.75, "incomplete_groups": 1}
    lessons = Lessons(limit=3)
    assert lessons(1, nothing).startswith("iteration 1: nothing is learned")
    assert "75% of the groups) or none (1 groups); 2 such iterations in a row" in lessons(2, nothing)
    assert lessons(3, nothing | {"updates": 2}) is None
    assert lessons(4, nothing)
    assert lessons(5, nothing)
    with pytest.raises(ValueError, match=r"3 such iterations in a row, which policy\.equal_rewards_limit"):
        lessons(6, nothing)
    forgiving = Lessons(limit=None)
    assert all(forgiving(i, nothing) for i in range(50))
