"""The order in which the ranks of one video exchange: a rank that has another order than the others waits for ever."""

import re

_NODE = re.compile(r"PrintGraphExecuteOrder\] Index\[\d+\], node name\[[^\]]*?(\w+)-op\d+\].*group\[([^\]]+)\]")


def collectives_of(log):
    """("AlltoAllV +0+2+4+6", ...) in the order in which the graphs of a log run them.

    A group is told by the distances of its ranks from its first: every rank is in groups of its own.
    """
    return tuple(f"{operator} {_shape(group)}" for operator, group in _NODE.findall(log))


def _shape(group):
    ranks = [int(rank) for rank in re.findall(r"_(\d+)", group)]
    return "".join(f"+{rank - ranks[0]}" for rank in ranks) if ranks else "world"


def first_difference(orders):
    """Where {rank: collectives_of its log} are not all the same, in words; None where they are."""
    (first, expected), *others = sorted(orders.items())
    for rank, order in others:
        for place, (one, other) in enumerate(zip(expected, order, strict=False)):
            if one != other:
                return f"collective {place} is {one} on rank {first} and {other} on rank {rank}"
        if len(order) != len(expected):
            return f"rank {first} has {len(expected)} collectives and rank {rank} has {len(order)}"
    return None
