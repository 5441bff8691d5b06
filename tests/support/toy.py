"""A flow with a known solution: x0 ~ N(MEAN, STD^2) per element, noise N(0, 1), x = sigma noise + (1 - sigma) x0."""

import numpy as np

MEAN, STD = 0.4, 0.6


def marginal(sigma):
    """Mean and variance of x at `sigma`."""
    return (1 - sigma) * MEAN, sigma**2 + (1 - sigma) ** 2 * STD**2


def velocity(x, sigma):
    """E[noise - x0 | x], the field that generates the marginals; linear in x."""
    mean, variance = marginal(sigma)
    return (sigma - (1 - sigma) * STD**2) / variance * (x - mean) - MEAN


def solution(x, sigma, sigma_next):
    """Where the ODE dx = velocity dsigma takes x: it keeps the number of standard deviations from the mean."""
    (mean, variance), (mean_next, variance_next) = marginal(sigma), marginal(sigma_next)
    return mean_next + np.sqrt(variance_next / variance) * (x - mean)


def wiggly_velocity(x, sigma):
    """A field that is not linear in x, so that no sampler is exact on it."""
    return velocity(x, sigma) + 0.5 * np.sin(3 * x + 2 * sigma)
