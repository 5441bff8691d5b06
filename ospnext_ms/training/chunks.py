"""Compiled work on many tensors goes chunk by chunk.

MindSpore unrolls a Python loop in a graph into calls inside calls, of which it allows 1,000; a HyperMap has no such
bound, but the time to compile an update grows faster than its number of parameters.
"""

CHUNK_SIZE = 32


def in_chunks(values):
    """A sequence as a list of tuples of at most CHUNK_SIZE of its members, in their order."""
    values = tuple(values)
    return [values[i : i + CHUNK_SIZE] for i in range(0, len(values), CHUNK_SIZE)]
