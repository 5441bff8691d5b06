"""From noise to data: the one loop in which a sampler asks a network for velocities."""

import numpy as np
from mindspore import Tensor

from ospnext_ms.diffusion.sampler import guided_velocity


def integrate(velocity, sampler, sample, on_step=lambda: None):
    """Follows the sampler to its end.

    Args:
        velocity: callable (x [B, ...], t [B] in [0, 1000]) -> velocity as x, guidance included (see `guided`).
        sampler: of diffusion.sampler.make_sampler or from_sigmas. sample: where it starts, fp32 [B, ...].
        on_step: called after every step.

    Returns:
        The sample at the sampler's last level, fp32 [B, ...].
    """
    sampler.reset()
    for i, timestep in enumerate(sampler.timesteps):
        sample = sampler.step(i, velocity(sample, timestep_tensor(timestep, sample.shape[0])), sample)
        # The device works behind the host's back: without waiting for the result, progress would be that of queueing.
        sample.asnumpy()
        on_step()
    return sample


def timestep_tensor(timestep, batch):
    """The network's time, fp32 [B]. A Python number would be compiled into the graph, a new one every step."""
    return Tensor(np.full(batch, timestep, np.float32))


def both_velocities(velocity, x, t_B, text, negative):
    """(conditional, unconditional) velocity, one after the other."""
    return velocity(x, t_B, text), velocity(x, t_B, negative)


def guided(velocity, text, negative, guidance, branches=both_velocities):
    """The velocity of `integrate` from a network's: with classifier-free guidance, without where `negative` is None.

    Two calls of the network a step, never one of twice the batch, which would need the memory of two (and on CPU takes
    twice as long as one).

    Args:
        velocity: callable (x [B, ...], t [B], text [B, L, C]) -> velocity as x. text, negative: embeddings [B, L, C].
        branches: computes both branches, as both_velocities does.
    """
    if negative is None:
        return lambda x, t_B: velocity(x, t_B, text)
    return lambda x, t_B: guided_velocity(*branches(velocity, x, t_B, text, negative), guidance)
