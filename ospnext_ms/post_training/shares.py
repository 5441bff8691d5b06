"""Who works on what: the prompts of an iteration, and which videos of them are whose. NumPy only."""

import numpy as np

_ORDER_STREAM = 0x02DE


def prompts_of_iteration(iteration, count, total, seed):
    """Numbers of the `count` prompts of an iteration: every epoch goes once through all `total` in an order of its own.

    A function of its arguments alone, so that a resumed run goes on with the same prompts.
    """
    chosen = []
    for position in range(iteration * count, (iteration + 1) * count):
        epoch, place = divmod(position, total)
        chosen.append(int(np.random.default_rng([seed, _ORDER_STREAM, epoch]).permutation(total)[place]))
    return chosen


def check_shares(prompts, group_size, data_size):
    """ValueError unless the videos of an iteration can be shared equally, whole groups or equal parts of one group."""
    if prompts % data_size == 0:
        return
    if data_size % prompts == 0 and group_size % (data_size // prompts) == 0:
        return
    valid = sorted({p for p in range(1, 2 * max(prompts, data_size) + 1) if p % data_size == 0}
                   | {p for p in range(1, data_size) if data_size % p == 0 and group_size % (data_size // p) == 0})
    raise ValueError(f"rollout.prompts is {prompts} with rollout.group_size {group_size}, to be shared by {data_size} "
                     f"groups of processes; valid numbers of prompts: {', '.join(map(str, valid))} ...")


def check_evaluation(count, data_size):
    """ValueError unless the videos of an evaluation can be shared equally."""
    if count % data_size:
        raise ValueError(f"evaluation.count is {count}; it must be a multiple of the {data_size} data-parallel groups")


def share(count, data_rank, data_size):
    """The consecutive part of range(count) that is this rank's; ValueError where `count` is not divisible."""
    if count % data_size:
        raise ValueError(f"{count} cannot be shared equally by {data_size}")
    size = count // data_size
    return range(data_rank * size, (data_rank + 1) * size)
