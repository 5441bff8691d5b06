"""The loss against its formula in NumPy."""

import numpy as np
import pytest
from mindspore import Tensor, nn

from ospnext_ms.training.loss import VelocityLoss


def test_the_loss_is_the_squared_error_of_the_velocity():
    class Half(nn.Cell):
        def construct(self, x, t, text):
            return 0.5 * x + t.reshape(-1, 1, 1, 1, 1) / 1000 + text.sum()

    rng = np.random.default_rng(0)
    x0, noise = (rng.standard_normal((2, 16, 1, 2, 2)).astype(np.float32) for _ in range(2))
    sigma, text = np.array([0.25, 0.5], np.float32), np.zeros((2, 1, 1), np.float32)
    level = sigma.reshape(-1, 1, 1, 1, 1)
    velocity = 0.5 * (level * noise + (1 - level) * x0) + level
    expected = np.square(velocity - (noise - x0)).mean()
    loss = VelocityLoss(Half())(*map(Tensor, (x0, noise, sigma, text)))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
