"""UniPC, a multistep predictor-corrector (arXiv 2302.04867): order 2, B(h) = exp(-h) - 1, predicting x0."""

import math

import numpy as np

from ospnext_ms.diffusion.multistep import MultistepSampler, log_snr


class UniPCSampler(MultistepSampler):
    """Samples with UniPC as Wan2.1 serves it; see `ospnext_ms.diffusion.sampler.make_sampler` for the interface.

    Every prediction of the network first corrects the sample it was made at, then predicts the next one. It begins
    below sigma 1, where the corrector would have to divide by an infinite step in lambda.
    """

    # Wan keeps this number in fp32, a little above 0.999. Timesteps that fall on an integer rely on it when truncated.
    SIGMA_MAX = float(np.float32(0.999))

    @staticmethod
    def _corrector_weights(sigmas, i, order):
        sigma_s, sigma_t = map(float, sigmas[i - 1 : i + 1])
        h = log_snr(sigma_t) - log_snr(sigma_s)
        phi_1 = math.expm1(-h)
        scale = -(1 - sigma_t) * phi_1
        if order == 1:
            return (sigma_t / sigma_s, 0.5 * scale, 0.5 * scale)
        ratio = (log_snr(float(sigmas[i - 2])) - log_snr(sigma_s)) / h
        phi_2 = phi_1 / -h - 1
        phi_3 = phi_2 / -h - 0.5
        # Order conditions of the paper's equation for rho, at the points `ratio` and 1 of the step.
        rho_past, rho_now = np.linalg.solve([[1, 1], [ratio, 1]], [phi_2 / phi_1, 2 * phi_3 / phi_1])
        slope = float(rho_past) / ratio
        rho_now = float(rho_now)
        return (sigma_t / sigma_s, scale * rho_now, scale * (1 - slope - rho_now), scale * slope)
