"""Which steps of a rollout are stochastic, and their noise levels."""

import numpy as np
import pytest

from ospnext_ms.diffusion.flow import inference_sigmas
from ospnext_ms.post_training.schedule import rollout_schedule


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
