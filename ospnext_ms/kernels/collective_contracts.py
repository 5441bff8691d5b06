"""The collectives' contracts, each checked against what NumPy makes of the inputs of all ranks. `doctor` runs them on
the devices at hand, under msrun; tests run them on CPU.

A check is called on every rank of a ProcessGroup of two or more, returns a line and raises AssertionError where the
contract does not hold.
"""

from functools import partial

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ospnext_ms.kernels.collectives import AllGather, AllMax, AllReduceSum, AllToAll, GatherShared, ReduceScatterSum

WIDTH = 24


def _inputs(size, rows):
    """fp32 arrays of whole numbers, so that sums are exact in any order: one [rows of the rank, WIDTH] a rank."""
    return [np.random.default_rng(rank).integers(-99, 99, (n, WIDTH)).astype(np.float32)
            for rank, n in zip(range(size), rows, strict=True)]


def _same(actual, expected):
    actual = actual.asnumpy()
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    wrong = int((actual != expected).sum())
    assert not wrong, f"{wrong} of {expected.size} numbers are wrong"


def _plain(group, make, expected):
    """A collective of equal parts: 2 rows a rank and another rank."""
    values = _inputs(group.size, [2 * group.size] * group.size)
    _same(make(group)(Tensor(values[group.index]), "check"), expected(values, group.index))
    return f"equal on {group.size} ranks"


def _sum(values, index):
    return sum(values)


def _part_of_sum(values, index):
    return sum(values)[2 * index : 2 * index + 2]


def _joined(values, index):
    return np.concatenate(values)


def _largest(values, index):
    return np.maximum.reduce(values)


def even_counts(size):
    """Two rows to everyone."""
    return tuple((2,) * size for _ in range(size))


def uneven_counts(size):
    """Another number for each pair, and nothing between the first two ranks."""
    counts = [[1 + (3 * i + 2 * j) % 4 for j in range(size)] for i in range(size)]
    counts[0][1] = counts[1][0] = 0
    return tuple(map(tuple, counts))


def idle_counts(size):
    """The last rank neither sends nor receives."""
    return tuple(tuple(int(i < size - 1 and j < size - 1) for j in range(size)) for i in range(size))


def _all_to_all(counts_of, group):
    """Forward and gradient, compiled as the networks are."""
    counts, me = counts_of(group.size), group.index
    values = _inputs(group.size, [max(1, sum(row)) for row in counts])
    starts = [np.concatenate([[0], np.cumsum(row)]) for row in counts]

    def received(arrays, rank):
        parts = [arrays[i][starts[i][rank] : starts[i][rank + 1]] for i in range(group.size)]
        return np.concatenate(parts)

    expected = received(values, me)
    exchange = AllToAll(group)

    def weighted(x, weights):
        y = exchange(x, counts, "check")
        return (y * weights).sum(), y

    # Each rank weighs what it received with its own number, so the gradient tells where each row went.
    rows = max(1, len(expected))
    weights = Tensor(np.full((rows, WIDTH), me + 1, np.float32))
    (_, y), dx = ms.jit(ms.value_and_grad(weighted, 0, has_aux=True))(Tensor(values[me]), weights)
    if len(expected):
        _same(y, expected)
    went = np.repeat(np.arange(1, group.size + 1), counts[me]).astype(np.float32)
    _same(dx[: len(went)] if len(went) else Tensor(np.zeros((0, WIDTH), np.float32)),
          np.repeat(went[:, None], WIDTH, 1))
    return f"equal on {group.size} ranks, forward and backward"


def _gather_shared(group):
    rows = tuple(1 + rank % 3 for rank in range(group.size))
    values = _inputs(group.size, rows)
    _same(GatherShared(group)(Tensor(values[group.index]), rows, "check"), np.concatenate(values))
    return f"equal on {group.size} ranks"


COLLECTIVE_CONTRACTS = (
    ("AllReduce", partial(_plain, make=AllReduceSum, expected=_sum)),
    ("AllGather", partial(_plain, make=AllGather, expected=_joined)),
    ("ReduceScatter", partial(_plain, make=ReduceScatterSum, expected=_part_of_sum)),
    ("maximum", partial(_plain, make=AllMax, expected=_largest)),
    ("All-to-All of equal parts", partial(_all_to_all, even_counts)),
    ("All-to-All of unequal parts, none between two ranks", partial(_all_to_all, uneven_counts)),
    ("All-to-All with an idle rank", partial(_all_to_all, idle_counts)),
    ("gather of unequal parts", _gather_shared),
)
