"""Which steps of a rollout are stochastic, and the noise levels of all of them, on the host in float64."""

from dataclasses import dataclass

import numpy as np

from ospnext_ms.diffusion.flow import inference_sigmas, noise_std


@dataclass(frozen=True)
class RolloutSchedule:
    """Noise levels of one iteration's rollout.

    `prefix` and `window` are levels of Euler and of SDE steps, float64 [steps + 1], the window beginning where the
    prefix ends; `stds` float64 [window steps]; `rest` the levels after the window down to 0, where the ODE goes on.
    """

    prefix: np.ndarray
    window: np.ndarray
    stds: np.ndarray
    rest: np.ndarray


def rollout_schedule(num_steps, shift, start, size, noise, eta, rest_steps=None):
    """The schedule whose steps `start` ... `start + size - 1` are stochastic.

    Args:
        num_steps, shift: of `inference_sigmas`. noise, eta: see `noise_std`.
        rest_steps: how many steps follow the window, evenly spread in unshifted levels; None keeps the schedule's own.

    Raises:
        ValueError: a noise kind that does not exist, or a window outside the schedule.
    """
    sigmas = inference_sigmas(num_steps, shift)
    stop = start + size
    if not 0 <= start < stop <= num_steps - 1:
        raise ValueError(f"the window {start}..{stop} does not lie in the first {num_steps - 1} of {num_steps} steps")
    rest = sigmas[stop:] if rest_steps is None else rest_sigmas(sigmas[stop], shift, rest_steps)
    stds = np.array([noise_std(noise, sigma, sigmas, eta) for sigma in sigmas[start:stop]])
    return RolloutSchedule(sigmas[: start + 1], sigmas[start : stop + 1], stds, rest)


def rest_sigmas(sigma, shift, num_steps):
    """`num_steps` steps from `sigma` to 0, evenly spread before the shift: float64 [num_steps + 1]; ValueError
    without a step."""
    if num_steps < 1:
        raise ValueError(f"rest_steps is {num_steps}; it must be at least 1")
    unshifted = sigma / (shift - (shift - 1) * sigma)
    levels = unshifted * np.linspace(1, 0, num_steps + 1)
    sigmas = shift * levels / (1 + (shift - 1) * levels)
    sigmas[0] = sigma
    return sigmas
