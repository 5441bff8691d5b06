"""Which steps reuse the residual of an earlier one."""

import numpy as np
import pytest

from ospnext_ms.diffusion.step_reuse import reused_steps


def test_by_hand():
    # Magnitudes over that of step 1: 0.98, 0.9604, then (0.98)^3 would be the third in a row.
    assert reused_steps([1.0] + 5 * [0.98], 0.12, 2, 0.0) == [False, True, True, False, True, True]
    # 0.02 + 0.0396 reach 0.05 in the second step.
    assert reused_steps([1.0] + 5 * [0.98], 0.05, 4, 0.0) == [False, True, False, True, False, True]
    # The share at the beginning is rounded up, and its last step is what the next one reuses.
    assert reused_steps([1.0] + 5 * [0.98], 0.12, 2, 0.2) == [False, False, True, True, False, True]


def test_a_step_that_grows_counts_as_one_that_falls():
    assert reused_steps([1.0, 1.2, 0.8, 0.95], 0.1, 5, 0.0) == [False, False, False, True]


@pytest.mark.parametrize("max_reused", [1, 2, 4])
def test_limits(max_reused):
    ratios = np.random.default_rng(0).uniform(0.97, 1.0, 50)
    steps = reused_steps(ratios, 10.0, max_reused, 0.3)
    assert not any(steps[:15])
    assert sum(steps) == 35 - len(steps[15 + max_reused :: max_reused + 1])
    assert not any(all(steps[i : i + max_reused + 1]) for i in range(50 - max_reused))
    assert not any(reused_steps(ratios, 1e-9, max_reused, 0.3))
