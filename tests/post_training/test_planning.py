"""Windows, schedules, prompts and advantages: everything of Mix-GRPO that needs no network."""

import numpy as np
import pytest

from ospnext_ms.diffusion.flow import inference_sigmas
from ospnext_ms.diffusion.windows import window_start
from ospnext_ms.generation.prompts import read_prompts
from ospnext_ms.post_training.advantages import group_advantages
from ospnext_ms.post_training.prompts import check_shares, prompts_of_iteration, share
from ospnext_ms.post_training.schedule import rollout_schedule


def test_first_window_stays():
    assert {window_start("first", 10, 25, 25, i, 0) for i in range(100)} == {0}


def test_progressive_window_moves_and_begins_anew():
    starts = [window_start("progressive", 4, 3, 8, i, 0) for i in range(15)]
    assert starts == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0, 0]


def test_random_window_reaches_every_place_and_repeats():
    starts = [window_start("random", 4, 2, 8, i, 5) for i in range(200)]
    assert set(starts) == {0, 1, 2, 3}
    assert all(starts[i] == starts[i + 1] for i in range(0, 200, 2))
    assert starts == [window_start("random", 4, 2, 8, i, 5) for i in range(200)]
    assert starts != [window_start("random", 4, 2, 8, i, 6) for i in range(200)]


@pytest.mark.parametrize(("strategy", "size", "message"), [
    ("middle", 2, "'first', 'progressive', 'random'"),
    ("first", 8, "from 1 to 7"),
    ("first", 0, "from 1 to 7"),
])
def test_invalid_windows(strategy, size, message):
    with pytest.raises(ValueError, match=message):
        window_start(strategy, size, 1, 8, 0, 0)


def test_schedule_is_the_serving_schedule_cut_in_three():
    sigmas = inference_sigmas(8, 3.0)
    schedule = rollout_schedule(8, 3.0, 2, 3, "osp", 0.7)
    np.testing.assert_array_equal(np.concatenate([schedule.prefix[:-1], schedule.window[:-1], schedule.rest]), sigmas)
    np.testing.assert_allclose(schedule.stds, sigmas[2:5])


def test_fewer_steps_after_the_window():
    schedule = rollout_schedule(8, 3.0, 0, 2, "flow_grpo", 0.7, rest_steps=3)
    assert len(schedule.rest) == 4
    assert schedule.rest[0] == schedule.window[-1]
    assert schedule.rest[-1] == 0
    unshifted = schedule.rest / (3 - 2 * schedule.rest)
    np.testing.assert_allclose(np.diff(unshifted), -unshifted[0] / 3)


def test_the_last_step_is_never_stochastic():
    with pytest.raises(ValueError, match="first 7 of 8"):
        rollout_schedule(8, 3.0, 5, 3, "osp", 0.7)


def test_every_epoch_has_every_prompt_once():
    order = [p for i in range(9) for p in prompts_of_iteration(i, 4, 12, 0)]
    epochs = [order[i : i + 12] for i in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert prompts_of_iteration(5, 4, 12, 0) == order[20:24]


def test_prompt_files(tmp_path):
    (tmp_path / "p.txt").write_text("a 3 moving left\n\n  \n a 5 \n")
    assert read_prompts(tmp_path / "p.txt") == ["a 3 moving left", "a 5"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(tmp_path / "empty.txt")
    with pytest.raises(FileNotFoundError, match=r"nothing.txt"):
        read_prompts(tmp_path / "nothing.txt")


@pytest.mark.parametrize(("prompts", "size", "data"), [(8, 4, 2), (2, 8, 8), (1, 6, 3)])
def test_videos_that_can_be_shared(prompts, size, data):
    check_shares(prompts, size, data)
    assert sorted(v for rank in range(data) for v in share(prompts * size, rank, data)) == list(range(prompts * size))


def test_videos_that_cannot_be_shared():
    with pytest.raises(ValueError, match=r"rollout.prompts is 3.*valid numbers of prompts: 1, 2, 4"):
        check_shares(3, 8, 4)


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
