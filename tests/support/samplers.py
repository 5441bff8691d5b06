"""A sampler, ours or diffusers', over a field that is known."""

import numpy as np
import pytest
from mindspore import Tensor


def sample(sampler, field, x, levels):
    """Runs a sampler over `field`, which is evaluated in float64 at `levels[i]`."""
    x = Tensor(x)
    for i in range(len(sampler.timesteps)):
        x = sampler.step(i, Tensor(field(x.asnumpy().astype(np.float64), levels[i]).astype(np.float32)), x)
    return x.asnumpy()


def sample_with_diffusers(scheduler, field, x):
    """The same with a scheduler of diffusers, whose timesteps are rounded."""
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(x)
    for t in scheduler.timesteps:
        velocity = field(x.numpy().astype(np.float64), t.item() / 1000)
        x = scheduler.step(torch.from_numpy(velocity.astype(np.float32)), t, x).prev_sample
    return x.numpy()
