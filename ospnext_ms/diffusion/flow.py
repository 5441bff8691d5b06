"""Flow matching on straight paths: x_sigma = sigma * noise + (1 - sigma) * x0, timestep t = 1000 * sigma.

NumPy only: schedules are made on the host, in float64.
"""

import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from ospnext_ms.diffusion.choices import NoiseKind

NUM_TRAIN_TIMESTEPS = 1000

# The line k * tokens + b of the dynamic shift's logarithm goes through these (tokens of one latent frame, log shift).
DYNAMIC_SHIFT_LINE = ((256, 0.5), (4096, 1.15))


def shift_sigmas(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """s * sigma / (1 + (s - 1) * sigma): maps [0, 1] onto itself, a shift s > 1 moves it towards the noise.

    sigmas: float array. Returns a float64 array of its shape.

    Raises:
        ValueError: `shift` is not a finite number above 0.
    """
    if not 0 < shift < math.inf:
        raise ValueError(f"shift is {shift}; it must be a finite number above 0 (1 changes nothing)")
    sigmas = np.asarray(sigmas, np.float64)
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def check_num_steps(num_steps: int) -> None:
    """ValueError where `num_steps` is not a whole number of at least 1."""
    if not isinstance(num_steps, int | np.integer) or num_steps < 1:
        raise ValueError(f"num_steps is {num_steps!r}; it must be a whole number of at least 1")


def inference_sigmas(num_steps: int, shift: float) -> np.ndarray:
    """Noise levels of `num_steps` sampling steps: linspace(1, 0, num_steps + 1), shifted (arXiv 2605.28691).

    Returns a float64 array [num_steps + 1] that falls from 1 to 0.

    Raises:
        ValueError: `num_steps` below 1 or no whole number, or `shift` not a finite number above 0.
    """
    check_num_steps(num_steps)
    return shift_sigmas(np.linspace(1, 0, num_steps + 1), shift)


def training_sigmas(u: np.ndarray, shift: float) -> np.ndarray:
    """Noise levels to train on: `u`, unshifted sigmas in [0, 1] (the sigmoid of a normal), shifted.

    Returns a float64 array of the shape of `u`.

    Raises:
        ValueError: a value of `u` outside [0, 1], or `shift` not a finite number above 0.
    """
    u = np.asarray(u, np.float64)
    outside = ~((u >= 0) & (u <= 1))
    if outside.any():
        raise ValueError(f"u holds {u[outside].flat[0]}; unshifted sigmas must lie in [0, 1]")
    return shift_sigmas(u, shift)


def dynamic_shift(tokens_per_frame: float) -> float:
    """Shift that grows with the resolution: exp(k * tokens + b), 1.65 at 256 and 3.16 at 4096 tokens of a latent frame.

    `tokens_per_frame` counts the tokens of one latent frame, H'*W'/4, not those of the whole video.

    Raises:
        ValueError: `tokens_per_frame` below 1.
    """
    if not tokens_per_frame >= 1:
        raise ValueError(f"tokens_per_frame is {tokens_per_frame}; it must be at least 1")
    (tokens_low, log_low), (tokens_high, log_high) = DYNAMIC_SHIFT_LINE
    slope = (log_high - log_low) / (tokens_high - tokens_low)
    return math.exp(log_low + slope * (tokens_per_frame - tokens_low))


def add_noise(x0: Any, noise: Any, sigma: Any) -> Any:
    """x_sigma = sigma * noise + (1 - sigma) * x0.

    x0 and noise [B, ...], sigma [B]: all NumPy arrays, or all MindSpore tensors of one float dtype.
    """
    sigma = sigma.reshape((-1,) + (1,) * (x0.ndim - 1))
    return sigma * noise + (1 - sigma) * x0


def velocity_target(x0: Any, noise: Any) -> Any:
    """d x_sigma / d sigma = noise - x0, what the network learns. Arrays or tensors of one shape."""
    return noise - x0


def noise_std(kind: str, sigma: float, sigmas: Sequence[float] | np.ndarray, eta: float = 0.7) -> float:
    """Noise level std(sigma) of an SDE step, a float.

    "osp" (arXiv 2605.28691): std falls linearly in sigma between the first and the last of the schedule, which run from
    1 to 0, so that std = sigma. "flow_grpo" (arXiv 2505.05470): std = eta * sqrt(sigma / (1 - sigma)); at sigma = 1 the
    second sigma of the schedule stands in the denominator.

    Args:
        sigma: noise level the step starts from. sigmas: the whole schedule, falling. eta: of "flow_grpo" only.

    Raises:
        ValueError: unknown kind, `sigma` outside [0, 1] or fewer than two sigmas.
    """
    sigma = float(sigma)
    if not 0 <= sigma <= 1:
        raise ValueError(f"sigma is {sigma}; it must lie in [0, 1]")
    if len(sigmas) < 2:
        raise ValueError(f"the schedule has {len(sigmas)} sigmas; it needs at least 2")
    if kind == "osp":
        sigma_max, sigma_min = float(sigmas[0]), float(sigmas[-1])
        return sigma_min + (sigma_max - sigma_min) * sigma
    if kind == "flow_grpo":
        below_one = float(sigmas[1]) if sigma == 1 else sigma
        return eta * math.sqrt(sigma / (1 - below_one))
    raise ValueError(f"noise kind is {kind!r}; valid: {', '.join(map(repr, get_args(NoiseKind)))}")
