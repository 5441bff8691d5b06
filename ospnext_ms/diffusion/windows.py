"""Where the stochastic window of an iteration begins. Needs no framework."""

from typing import get_args

import numpy as np

from ospnext_ms.diffusion.choices import WindowStrategy

_WINDOW_STREAM = 0x71D0


def window_start(strategy: str, size: int, every: int, num_steps: int, iteration: int, seed: int) -> int:
    """First stochastic step of an iteration (Mix-GRPO, arXiv 2507.21802); the last step is never stochastic.

    "first": always 0. "progressive": moves on by one step every `every` iterations and begins anew after the last
    place. "random": drawn anew every `every` iterations.

    Raises:
        ValueError: unknown strategy, or a window that leaves no step for the end.
    """
    if strategy not in get_args(WindowStrategy):
        raise ValueError(f"window strategy is {strategy!r}; valid: {', '.join(map(repr, get_args(WindowStrategy)))}")
    if not 1 <= size <= num_steps - 1:
        raise ValueError(f"window size is {size}; with {num_steps} steps it must be from 1 to {num_steps - 1}, since "
                         "the last step is never stochastic")
    places = num_steps - size
    if strategy == "first":
        return 0
    if strategy == "progressive":
        return iteration // every % places
    return int(np.random.default_rng([seed, _WINDOW_STREAM, iteration // every]).integers(places))
