"""UniPC, a multistep predictor-corrector (arXiv 2302.04867): order 2, B(h) = exp(-h) - 1, predicting x0.

With alpha = 1 - sigma and lambda = log(alpha / sigma), a step over h = lambda_t - lambda_s is, in exact arithmetic, a
weighted sum of the sample and of predictions of x0. The weights depend on the schedule only, so they are computed once,
on the host and in float64; what is left for the device is the sum.
"""

import math

import mindspore as ms
import numpy as np

from ospnext_ms.diffusion.flow import NUM_TRAIN_TIMESTEPS, check_num_steps, shift_sigmas

ORDER = 2

# Wan keeps this number in fp32, a little above 0.999. Timesteps that fall on an integer rely on it when truncated.
SIGMA_MAX = float(np.float32(0.999))


def unipc_sigmas(num_steps, shift):
    """Wan2.1's noise levels for UniPC: linspace(0.999, 0, num_steps + 1) without its last value, shifted, then 0.

    They start below 1, where lambda would be infinite. Returns a float64 array [num_steps + 1].

    Raises:
        ValueError: `num_steps` below 1 or no whole number, or `shift` not a finite number above 0.
    """
    check_num_steps(num_steps)
    sigmas = np.linspace(SIGMA_MAX, 0, num_steps + 1)[:-1]
    return np.append(shift_sigmas(sigmas, shift), 0.0)


class UniPCSampler:
    """Samples with UniPC as Wan2.1 serves it; see `ospnext_ms.diffusion.sampler.make_sampler` for the interface.

    Every prediction of the network first corrects the sample it was made at, then predicts the next one. The order is
    1 in the first and in the last step, where fewer predictions are known or the end is an exact prediction of x0.
    """

    def __init__(self, num_steps, shift):
        sigmas = unipc_sigmas(num_steps, shift)
        self._prepare(sigmas, [float(int(NUM_TRAIN_TIMESTEPS * sigma)) for sigma in sigmas[:-1]])

    @classmethod
    def from_sigmas(cls, sigmas):
        """Sampler over given levels, falling from below 1 to 0, with timesteps that are not rounded.

        Raises:
            ValueError: levels that do not fall strictly from below 1 to 0.
        """
        sigmas = np.asarray(sigmas, np.float64)
        if len(sigmas) < 2 or not sigmas[0] < 1 or sigmas[-1] != 0 or not (np.diff(sigmas) < 0).all():
            raise ValueError(f"sigmas are {sigmas.tolist()}; they must fall from below 1 to 0")
        sampler = cls.__new__(cls)
        sampler._prepare(sigmas, [float(NUM_TRAIN_TIMESTEPS * sigma) for sigma in sigmas[:-1]])
        return sampler

    def _prepare(self, sigmas, timesteps):
        self.sigmas, self.timesteps = sigmas, timesteps
        num_steps = len(timesteps)
        orders = [min(ORDER, i + 1, num_steps - i) for i in range(num_steps)]
        self._predictors = [_predictor_weights(self.sigmas, i, orders[i]) for i in range(num_steps)]
        self._correctors = [None] + [_corrector_weights(self.sigmas, i, orders[i - 1]) for i in range(1, num_steps)]
        self.reset()

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
        if i > 0:
            sample = _weighted_sum(self._correctors[i], self._sample, predictions)
        self._next = i + 1
        self._sample = sample
        self._predictions = predictions[:ORDER]
        return _weighted_sum(self._predictors[i], sample, predictions)


def _weighted_sum(weights, sample, predictions):
    """weights[0] * sample + weights[1] * predictions[0] + ...; predictions newest first, as many as have a weight."""
    total = weights[0] * sample
    for weight, prediction in zip(weights[1:], predictions, strict=False):
        total = total + weight * prediction
    return total


def _log_snr(sigma):
    return math.log((1 - sigma) / sigma)


def _predictor_weights(sigmas, i, order):
    """Weights of (sample i, x0 of step i, x0 of step i - 1) in sample i + 1; the last one for order 2 only."""
    sigma_s, sigma_t = map(float, sigmas[i : i + 2])
    if sigma_t == 0:
        assert order == 1
        return (0.0, 1.0)
    h = _log_snr(sigma_t) - _log_snr(sigma_s)
    scale = -(1 - sigma_t) * math.expm1(-h)
    if order == 1:
        return (sigma_t / sigma_s, scale)
    ratio = (_log_snr(float(sigmas[i - 1])) - _log_snr(sigma_s)) / h
    slope = 0.5 / ratio
    return (sigma_t / sigma_s, scale * (1 - slope), scale * slope)


def _corrector_weights(sigmas, i, order):
    """Weights of (corrected sample i - 1, x0 of step i, of i - 1, of i - 2) in the corrected sample i."""
    sigma_s, sigma_t = map(float, sigmas[i - 1 : i + 1])
    h = _log_snr(sigma_t) - _log_snr(sigma_s)
    phi_1 = math.expm1(-h)
    scale = -(1 - sigma_t) * phi_1
    if order == 1:
        return (sigma_t / sigma_s, 0.5 * scale, 0.5 * scale)
    ratio = (_log_snr(float(sigmas[i - 2])) - _log_snr(sigma_s)) / h
    phi_2 = phi_1 / -h - 1
    phi_3 = phi_2 / -h - 0.5
    # Order conditions of the paper's equation for rho, at the points `ratio` and 1 of the step.
    rho_past, rho_now = np.linalg.solve([[1, 1], [ratio, 1]], [phi_2 / phi_1, 2 * phi_3 / phi_1])
    slope = float(rho_past) / ratio
    rho_now = float(rho_now)
    return (sigma_t / sigma_s, scale * rho_now, scale * (1 - slope - rho_now), scale * slope)
