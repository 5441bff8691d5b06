"""Compiled work on many tensors goes part by part.

MindSpore unrolls a Python loop in a graph into calls inside calls, of which it allows 1,000; a HyperMap has no such
bound, but the time to compile an update grows faster than its number of parameters.
"""

PART_SIZE = 32


def in_parts(values):
    """A sequence as a list of tuples of at most PART_SIZE of its members, in their order."""
    values = tuple(values)
    return [values[i : i + PART_SIZE] for i in range(0, len(values), PART_SIZE)]
