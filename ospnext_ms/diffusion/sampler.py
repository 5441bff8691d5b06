"""Steps from noise to data: the ODE by Euler, the SDE of reinforcement post-training, and the samplers for serving.

Everything is computed in fp32. Noise levels (sigma, sigma_next, std) are numbers, or tensors [] or [B], one a sample.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from ospnext_ms.diffusion.flow import NUM_TRAIN_TIMESTEPS, inference_sigmas
from ospnext_ms.diffusion.flow import noise_std as noise_std
from ospnext_ms.diffusion.multistep import DPMSolverSampler
from ospnext_ms.diffusion.unipc import UniPCSampler
from ospnext_ms.kernels.reductions import mean_per_sample
from ospnext_ms.kernels.timesteps import log

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def make_sampler(name, num_steps, shift):
    """Sampler for serving: "euler" (as OSP-Next), "unipc" or "dpm++" (both as Wan2.1).

    It has `.timesteps`, a list of num_steps floats for the network; `.sigmas`, the noise levels they stand for and the
    final 0, float64 [num_steps + 1]; `.step(i, velocity, sample)`, which takes the sample at sigmas[i] and the velocity
    there, tensors [B, ...], and returns the sample at sigmas[i + 1], fp32 [B, ...]; `.reset()`, to use it again.

    Raises:
        ValueError: unknown name, `num_steps` below 1 or no whole number, `shift` not a finite number above 0.
    """
    return _sampler_class(name)(num_steps, shift)


def sampler_from_sigmas(name, sigmas):
    """The same over given levels, falling to 0, with timesteps that are not rounded.

    Raises:
        ValueError: unknown name, or levels that the sampler cannot begin at (UniPC: below 1).
    """
    return _sampler_class(name).from_sigmas(sigmas)


def _sampler_class(name):
    classes = {"euler": EulerSampler, "unipc": UniPCSampler, "dpm++": DPMSolverSampler}
    if name not in classes:
        raise ValueError(f"sampler is {name!r}; valid: {', '.join(map(repr, classes))}")
    return classes[name]


class EulerSampler:
    """Samples with Euler steps over `inference_sigmas`; see `make_sampler` for the interface."""

    def __init__(self, num_steps, shift):
        self._prepare(inference_sigmas(num_steps, shift))

    @classmethod
    def from_sigmas(cls, sigmas):
        """Sampler over given levels, which fall."""
        sampler = cls.__new__(cls)
        sampler._prepare(sigmas)
        return sampler

    def _prepare(self, sigmas):
        self.sigmas = np.asarray(sigmas, np.float64)
        self.timesteps = [NUM_TRAIN_TIMESTEPS * float(sigma) for sigma in self.sigmas[:-1]]

    def reset(self):
        """Nothing to forget: a step depends on no other."""

    def step(self, i, velocity, sample):
        """Sample at sigmas[i + 1]. velocity and sample [B, ...]; returns fp32 [B, ...]."""
        return euler_step(velocity, sample, self.sigmas[i], self.sigmas[i + 1])


def guided_velocity(v_cond, v_uncond, guidance):
    """Classifier-free guidance: v_uncond + guidance * (v_cond - v_uncond), fp32; tensors of one shape."""
    v_uncond = v_uncond.astype(ms.float32)
    return v_uncond + guidance * (v_cond.astype(ms.float32) - v_uncond)


def euler_step(velocity, sample, sigma, sigma_next):
    """x + v * (sigma_next - sigma). velocity and sample [B, ...]; returns fp32 [B, ...]."""
    sample = sample.astype(ms.float32)
    dt = _level(sigma_next, sample) - _level(sigma, sample)
    return sample + velocity.astype(ms.float32) * dt


def sde_step(velocity, sample, sigma, sigma_next, std, noise=None, prev_sample=None):
    """One stochastic step with the marginals of the ODE (Flow-GRPO, arXiv 2505.05470), dt = sigma_next - sigma < 0:

        mean = x * (1 + std^2 / (2 sigma) * dt) + v * (1 + std^2 * (1 - sigma) / (2 sigma)) * dt
        x' = mean + std * sqrt(-dt) * noise

    With `noise` the next sample is drawn, with `prev_sample` a given one is scored; the same numbers come out of both.
    The gradient of the log-probability reaches velocity and sample through the mean; x' counts as an observation.

    Args:
        velocity, sample, noise, prev_sample: [B, ...].
        sigma, sigma_next: levels, 1 >= sigma > sigma_next >= 0. std: noise level above 0, see `noise_std`.

    Returns:
        (prev_sample, log_prob, mean): x' fp32 [B, ...]; the log-density of x', averaged over all dimensions but the
        first, fp32 [B]; mean fp32 [B, ...].

    Raises:
        ValueError: not exactly one of `noise` and `prev_sample`, or levels out of range (where they are numbers).
    """
    if (noise is None) == (prev_sample is None):
        raise ValueError("give exactly one of noise, to draw the next sample, and prev_sample, to score a given one")
    _check_levels(sigma, sigma_next, std)
    sample = sample.astype(ms.float32)
    sigma, sigma_next, std = _level(sigma, sample), _level(sigma_next, sample), _level(std, sample)
    dt = sigma_next - sigma
    drift = std * std / (2 * sigma)
    mean = sample * (1 + drift * dt) + velocity.astype(ms.float32) * ((1 + drift * (1 - sigma)) * dt)
    step_std = std * (ops.sqrt(-dt) if isinstance(dt, Tensor) else math.sqrt(-dt))
    prev_sample = mean + step_std * noise.astype(ms.float32) if prev_sample is None else prev_sample.astype(ms.float32)
    return prev_sample, _gaussian_log_density(ops.stop_gradient(prev_sample), mean, step_std), mean


def _gaussian_log_density(x, mean, std):
    """log N(x; mean, std^2), averaged over all dimensions but the first: [B]. std: number or [B, 1, ...]."""
    z = (x - mean) / std
    log_std = log(std).reshape(-1) if isinstance(std, Tensor) else math.log(std)
    # One reduction over all axes: after flattening, the CPU kernel would add millions of values up one by one.
    return -0.5 * mean_per_sample(z * z) - log_std - HALF_LOG_2PI



def _level(value, sample):
    """A number as a float, a tensor [] or [B] in fp32 and shaped to broadcast over sample [B, ...]."""
    if isinstance(value, Tensor):
        return value.astype(ms.float32).reshape((-1,) + (1,) * (sample.ndim - 1))
    return float(value)


def _check_levels(sigma, sigma_next, std):
    """Tensors cannot be looked into inside a compiled graph, so only numbers are checked."""
    numbers = (int, float, np.number)
    if isinstance(sigma, numbers) and isinstance(sigma_next, numbers) and not 1 >= sigma > sigma_next >= 0:
        raise ValueError(f"a step goes from sigma {sigma} to {sigma_next}; it needs 1 >= sigma > sigma_next >= 0")
    if isinstance(std, numbers) and not std > 0:
        raise ValueError(f"std is {std}; it must be above 0 (euler_step is the step without noise)")
