"""Where the stochastic window of an iteration begins. Needs no framework."""

import numpy as np

WINDOW_STRATEGIES = ("first", "progressive", "random")
_WINDOW_STREAM = 0x71D0


def window_start(strategy, size, every, num_steps, iteration, seed):
    """First stochastic step of an iteration (Mix-GRPO, arXiv 2507.21802); the last step is never stochastic.

    "first": always 0. "progressive": moves on by one step every `every` iterations and begins anew after the last
    place. "random": drawn anew every `every` iterations.

    Raises:
        ValueError: unknown strategy, or a window that leaves no step for the end.
    """
    if strategy not in WINDOW_STRATEGIES:
        raise ValueError(f"window strategy is {strategy!r}; valid: {', '.join(map(repr, WINDOW_STRATEGIES))}")
    if not 1 <= size <= num_steps - 1:
        raise ValueError(f"window size is {size}; with {num_steps} steps it must be from 1 to {num_steps - 1}, since "
                         "the last step is never stochastic")
    places = num_steps - size
    if strategy == "first":
        return 0
    if strategy == "progressive":
        return iteration // every % places
    return int(np.random.default_rng([seed, _WINDOW_STREAM, iteration // every]).integers(places))
