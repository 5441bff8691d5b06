"""The noise that videos start from."""

from pathlib import Path
from tokenize import TokenError

import numpy as np

from ospnext_ms.storage.files import current_folder


def starting_noise(shape, seed, index):
    """Standard normal noise, fp32, of video `index` of a run with `seed`; the same on every device and in any batch."""
    return np.random.default_rng([seed, index]).standard_normal(shape, dtype=np.float32)


def load_starting_noise(config, count):
    """What `sampling.starting_noise` names, for `count` videos: float array [count, 16, T, H/8, W/8], or None.

    An array of one video [16, T, H/8, W/8] serves all of them. The file is mapped, and its numbers looked at.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a .npy file of floats, of another shape, or with numbers in it that are not finite.
    """
    name = config.sampling.starting_noise
    if name is None:
        return None
    if not Path(name).is_file():
        raise FileNotFoundError(f"sampling.starting_noise: no file {name} {current_folder()}")
    try:
        noise = np.load(name, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, TypeError, TokenError) as error:
        raise ValueError(f"sampling.starting_noise: {name} is not a .npy file of numbers: {error}") from error
    if not isinstance(noise, np.ndarray):
        raise ValueError(f"sampling.starting_noise: {name} is an archive of arrays; expected a .npy file")
    shape = config.latent_shape
    if noise.dtype.kind != "f" or noise.shape not in (shape, (count, *shape)):
        raise ValueError(f"sampling.starting_noise: {name} holds {noise.dtype} {noise.shape}; expected floats {shape}, "
                         f"or {(count, *shape)} for the {count} videos of this run")
    for video in noise.reshape(-1, *shape):
        if not np.isfinite(video).all():
            raise ValueError(f"sampling.starting_noise: {name} holds numbers that are not finite (NaN or infinite)")
    return np.broadcast_to(noise, (count, *shape))
