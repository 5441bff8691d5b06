"""Multistep samplers: every step is a weighted sum of the sample and of the last predictions of x0.

With alpha = 1 - sigma and lambda = log(alpha / sigma), a step over h = lambda_t - lambda_s of the exponential
integrator is, in exact arithmetic, such a sum. The weights depend on the schedule only, so they are computed once, on
the host and in float64; what is left for the device is the sum.
"""

import math

import mindspore as ms
import numpy as np

from ospnext_ms.diffusion.flow import NUM_TRAIN_TIMESTEPS, check_num_steps, shift_sigmas

ORDER = 2


class MultistepSampler:
    """Predictor of order 2, see `ospnext_ms.diffusion.sampler.make_sampler` for the interface.

    The order is 1 in the first and in the last step, where fewer predictions are known or the end is an exact
    prediction of x0. Subclasses say where a schedule begins (SIGMA_MAX), and may correct a sample before the next is
    predicted.
    """

    SIGMA_MAX = 1.0

    def __init__(self, num_steps, shift):
        """Wan2.1's noise levels: linspace(SIGMA_MAX, 0, num_steps + 1) without its last value, shifted, then 0.

        Timesteps are truncated to integers, as Wan's are.

        Raises:
            ValueError: `num_steps` below 1 or no whole number, or `shift` not a finite number above 0.
        """
        check_num_steps(num_steps)
        sigmas = np.append(shift_sigmas(np.linspace(self.SIGMA_MAX, 0, num_steps + 1)[:-1], shift), 0.0)
        self._prepare(sigmas, [float(int(NUM_TRAIN_TIMESTEPS * sigma)) for sigma in sigmas[:-1]])

    @classmethod
    def from_sigmas(cls, sigmas):
        """Sampler over given levels, falling to 0, with timesteps that are not rounded.

        Raises:
            ValueError: levels that do not fall strictly to 0 from where the sampler may begin.
        """
        sigmas = np.asarray(sigmas, np.float64)
        below = "1" if cls.SIGMA_MAX == 1 else "below 1"
        if (len(sigmas) < 2 or not (sigmas[0] < 1 or sigmas[0] == cls.SIGMA_MAX) or sigmas[-1] != 0
                or not (np.diff(sigmas) < 0).all()):
            raise ValueError(f"sigmas are {sigmas.tolist()}; they must fall from {below} to 0")
        sampler = cls.__new__(cls)
        sampler._prepare(sigmas, [float(NUM_TRAIN_TIMESTEPS * sigma) for sigma in sigmas[:-1]])
        return sampler

    def _prepare(self, sigmas, timesteps):
        self.sigmas, self.timesteps = sigmas, timesteps
        num_steps = len(timesteps)
        orders = [min(ORDER, i + 1, num_steps - i) for i in range(num_steps)]
        self._predictors = [_predictor_weights(sigmas, i, orders[i]) for i in range(num_steps)]
        self._correctors = [None] + [self._corrector_weights(sigmas, i, orders[i - 1]) for i in range(1, num_steps)]
        self.reset()

    @staticmethod
    def _corrector_weights(sigmas, i, order):
        """Weights of (corrected sample i - 1, x0 of step i, of i - 1, of i - 2) in the corrected sample i, or None."""

    def reset(self):
        """Forget all steps made; the next one is step 0."""
        self._next = 0
        self._sample = None
        self._predictions = []

    def step(self, i, velocity, sample):
        """Sample at sigmas[i + 1]. velocity and sample [B, ...]; returns fp32 [B, ...].

        Raises:
            ValueError: the steps are not made in the order 0, 1, 2, ... after a reset.
        """
        if i != self._next or i >= len(self.timesteps):
            raise ValueError(f"step {i} was called where step {self._next} of {len(self.timesteps)} is due; "
                             "make the steps in order, and reset() the sampler before it is used again")
        sample = sample.astype(ms.float32)
        x0 = sample - float(self.sigmas[i]) * velocity.astype(ms.float32)
        predictions = [x0, *self._predictions]
        if self._correctors[i] is not None:
            sample = _weighted_sum(self._correctors[i], self._sample, predictions)
        self._next = i + 1
        self._sample = sample
        self._predictions = predictions[:ORDER]
        return _weighted_sum(self._predictors[i], sample, predictions)


class DPMSolverSampler(MultistepSampler):
    """DPM-Solver++ (arXiv 2211.01095), 2M with the midpoint rule, as Wan2.1 serves it: the predictor alone, from 1."""


def log_snr(sigma):
    """lambda = log((1 - sigma) / sigma), -inf at 1."""
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf


def _weighted_sum(weights, sample, predictions):
    """weights[0] * sample + weights[1] * predictions[0] + ...; predictions newest first, as many as have a weight."""
    total = weights[0] * sample
    for weight, prediction in zip(weights[1:], predictions, strict=False):
        total = total + weight * prediction
    return total


def _predictor_weights(sigmas, i, order):
    """Weights of (sample i, x0 of step i, x0 of step i - 1) in sample i + 1; the last one for order 2 only.

    Where the step before began at sigma 1, it is infinitely long in lambda, and x0 of it has the weight 0.
    """
    sigma_s, sigma_t = map(float, sigmas[i : i + 2])
    if sigma_t == 0:
        assert order == 1
        return (0.0, 1.0)
    h = log_snr(sigma_t) - log_snr(sigma_s)
    scale = -(1 - sigma_t) * math.expm1(-h)
    if order == 1:
        return (sigma_t / sigma_s, scale)
    ratio = (log_snr(float(sigmas[i - 1])) - log_snr(sigma_s)) / h
    slope = 0.5 / ratio
    return (sigma_t / sigma_s, scale * (1 - slope), scale * slope)
