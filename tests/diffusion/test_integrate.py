"""The loop from noise to data, with velocities that need no network."""

import numpy as np
from mindspore import Tensor

from ospnext_ms.diffusion.integrate import guided, integrate
from ospnext_ms.diffusion.sampler import make_sampler


class CountedVelocity:
    """Velocity that pulls towards what the text says, and counts its calls."""

    def __init__(self):
        self.calls = 0
        self.timesteps = []

    def __call__(self, x, t, text):
        self.calls += 1
        self.timesteps.append(t.asnumpy().tolist())
        return x - text.mean()


def test_guidance_one_skips_the_unconditional_branch():
    sample, text = Tensor(np.ones((2, 1, 1, 2, 2), np.float32)), Tensor(np.full((2, 3, 4), 0.5, np.float32))
    steps = []
    for negative, calls in ((None, 3), (text, 6)):
        velocity = CountedVelocity()
        integrate(guided(velocity, text, negative, 2.0), make_sampler("euler", 3, 1.0), sample, lambda: steps.append(1))
        assert velocity.calls == calls
    assert len(steps) == 6
    assert velocity.timesteps[0] == [1000, 1000]


def test_a_straight_path_is_followed_to_its_end():
    noise = np.random.default_rng(0).standard_normal((1, 2, 1, 2, 2)).astype(np.float32)
    target = np.float32(0.25)

    def velocity(x, t):
        return Tensor(noise - target)

    sample = integrate(velocity, make_sampler("euler", 5, 3.0), Tensor(noise))
    np.testing.assert_allclose(sample.asnumpy(), target, atol=1e-6)
