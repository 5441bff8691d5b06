"""Collectives between processes: HCCL operators on Ascend, an exact substitute by summation on CPU.

The CPU backend (mccl) has no All-to-All, no Reduce-Scatter and, in sub-groups, no All-Gather; a sum over the group it
has. So there every rank writes its part into a buffer of zeros with room for the parts of all ranks, the buffers are
summed (adding zeros is exact) and each rank cuts out what it needs.

Shapes and split sizes are static. A tensor never has zero rows: where a rank has nothing, one row of padding stands
in, which is never sent. What is counted as traffic is what the operation sends to other ranks, not what the substitute
sends.

N rows, W width of a row.
"""

from collections import Counter
from dataclasses import dataclass, field

import mindspore as ms
from mindspore import nn, ops
from mindspore.ops import constexpr

from ospnext_ms.kernels.device import on_ascend
from ospnext_ms.kernels.slices import narrow


class Traffic:
    """Payload that this rank sent to other ranks: bytes and calls by label.

    Counted while the model runs in PyNative mode; a compiled graph is counted once, when it is compiled. The gradient
    of an exchange sends as much as the exchange and is not counted; gathered weights are counted in both directions.
    """

    def __init__(self):
        self.bytes = Counter()
        self.calls = Counter()

    def record(self, label, num_bytes):
        """Adds one call that sent `num_bytes`."""
        self.bytes[label] += num_bytes
        self.calls[label] += 1

    def clear(self):
        """Starts again from nothing."""
        self.bytes.clear()
        self.calls.clear()


@dataclass(frozen=True)
class ProcessGroup:
    """Ranks that communicate.

    Args:
        ranks: world ranks, in the order in which their parts are laid out.
        index: position of this process in it.
        name: MindSpore's name of the group; None for a single process, which communicates with nobody.
        traffic: where payload is counted.
    """

    ranks: tuple = (0,)
    index: int = 0
    name: str | None = None
    traffic: Traffic = field(default_factory=Traffic, compare=False, repr=False)

    @property
    def size(self):
        """Number of ranks."""
        return len(self.ranks)


class _Collective(nn.Cell):
    """What all collectives share: group, device and counting."""

    def __init__(self, group):
        super().__init__()
        self.size = group.size
        self.index = group.index
        self.native = on_ascend()
        self.record = constexpr(group.traffic.record, reuse_result=False)
        if self.size > 1:
            self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, group.name)


class _Anchor(nn.Cell):
    """y, which from now on depends on x, with a gradient of zero.

    A rank that has nothing to send or nothing to receive would otherwise leave exchanges out of its backward pass in
    which the other ranks wait for it, and a compiled graph would put them in another order than theirs.
    """

    def construct(self, y, x):
        return ops.depend(y, x)

    def bprop(self, y, x, out, dout):
        return dout, ops.depend(ops.depend(ops.zeros_like(x), out), dout)


class AllReduceSum(_Collective):
    """Sum over the ranks of a group; shape and dtype of x. The gradient is the sum of the ranks' gradients."""

    def construct(self, x, label="all_reduce"):
        if self.size == 1:
            return x
        # What a ring sends: every element once for the sum and once for its distribution.
        self.record(label, 2 * (self.size - 1) * _num_bytes(x.shape, x.dtype) // self.size)
        return self.all_reduce(x)


class AllGather(_Collective):
    """x [n, ...] of one shape on every rank -> [size * n, ...], parts in the order of the group. Without gradient."""

    def __init__(self, group):
        super().__init__(group)
        if self.size > 1 and self.native:
            self.all_gather = ops.AllGather(group.name)

    def construct(self, x, label="all_gather"):
        if self.size == 1:
            return x
        self.record(label, (self.size - 1) * _num_bytes(x.shape, x.dtype))
        x = ops.stop_gradient(x)
        if self.native:
            return self.all_gather(x)
        # The CPU's AllReduce takes no bytes; they are exact in fp32.
        sent = x.astype(ms.float32) if x.dtype == ms.uint8 else x
        whole = self.all_reduce(_placed(sent, self.index * x.shape[0], self.size * x.shape[0]))
        return whole.astype(x.dtype)


class ReduceScatterSum(_Collective):
    """x [size * n, ...] on every rank -> [n, ...], this rank's part of the sum over the ranks. Without gradient."""

    def __init__(self, group):
        super().__init__(group)
        if self.size > 1 and self.native:
            self.reduce_scatter = ops.ReduceScatter(ops.ReduceOp.SUM, group.name)

    def construct(self, x, label="reduce_scatter"):
        if self.size == 1:
            return x
        self.record(label, (self.size - 1) * _num_bytes(x.shape, x.dtype) // self.size)
        x = ops.stop_gradient(x)
        if self.native:
            return self.reduce_scatter(x)
        # A plain slice: `narrow`, called from a gradient that is recomputed, does not compile (MindSpore 2.9).
        rows = x.shape[0] // self.size
        return self.all_reduce(x)[self.index * rows : (self.index + 1) * rows]


class AllMax(nn.Cell):
    """Element-wise maximum over the ranks of a group; shape and dtype of x. Without gradient."""

    def __init__(self, group):
        super().__init__()
        self.gather = AllGather(group)

    def construct(self, x, label="all_max"):
        if self.gather.size == 1:
            return ops.stop_gradient(x)
        return ops.ReduceMax()(self.gather(x.expand_dims(0), label), 0)


class AllToAll(_Collective):
    """Rows of every rank to every other rank, with split sizes of any kind.

    Inputs: x [N, W], its first sum(counts[index]) rows sorted by destination, the others padding; counts, a tuple of
    tuples: counts[i][j] rows go from rank i to rank j. Output: [max(1, M), W], the M rows sent to this rank, by source.
    The gradient goes the same way back.
    """

    def __init__(self, group):
        super().__init__(group)
        self.anchor = _Anchor()
        if self.size > 1 and self.native:
            self.all_to_all = ops.AlltoAllV(group.name)

    def construct(self, x_NW, counts, label):
        if self.size == 1:
            return x_NW
        width = x_NW.shape[1]
        self.record(label, _rows_to_others(counts, self.index) * _num_bytes((width,), x_NW.dtype))
        if _total(counts) == 0:
            return self.anchor(ops.zeros((1, width), x_NW.dtype), x_NW)
        if self.native and not _has_idle_rank(counts):
            send, receive = _splits(counts, self.index, width)
            sent = _placement(counts, self.index)[1]
            return self.all_to_all(narrow(x_NW, 0, 0, sent).reshape(-1), send, receive).reshape(-1, width)
        return self._summed(x_NW, counts)

    def _summed(self, x_NW, counts):
        start, sent, total = _placement(counts, self.index)
        if sent:
            buffer = _placed(narrow(x_NW, 0, 0, sent), start, total)
        else:
            buffer = self.anchor(ops.zeros((total, x_NW.shape[1]), x_NW.dtype), x_NW)
        buffer = self.all_reduce(buffer)
        parts = [narrow(buffer, 0, first, last - first) for first, last in _incoming(counts, self.index)]
        if len(parts) == 0:
            return self.anchor(ops.zeros((1, x_NW.shape[1]), x_NW.dtype), buffer)
        return ops.cat(parts, 0)


class GatherShared(_Collective):
    """Every rank's rows to all ranks, for something that all ranks then compute in the same way.

    Inputs: x [N, W], its first rows[index] rows real, the others padding; rows, a tuple with the number of every rank.
    Output: [sum(rows), W], by rank. The gradient is the own rows of the output's gradient and needs no communication:
    all ranks derive the same loss from the output, and it is counted once.
    """

    def __init__(self, group):
        super().__init__(group)
        self.anchor = _Anchor()
        if self.size > 1 and self.native:
            self.all_gather_v = ops.AllGatherV(group.name)

    def construct(self, x_NW, rows, label):
        if self.size == 1:
            return x_NW
        width = x_NW.shape[1]
        own, start, total = rows[self.index], _total(rows[: self.index]), _total(rows)
        self.record(label, (self.size - 1) * own * _num_bytes((width,), x_NW.dtype))
        x_NW = narrow(x_NW, 0, 0, max(1, own))
        if self.native and min(rows):
            gathered = self.all_gather_v(x_NW.reshape(-1), _scaled(rows, width)).reshape(total, width)
        elif own:
            gathered = self.all_reduce(_placed(ops.stop_gradient(x_NW), start, total))
        else:
            nothing = ops.zeros((total, width), x_NW.dtype)
            gathered = self.all_reduce(self.anchor(nothing, ops.stop_gradient(x_NW)))
        gathered = ops.stop_gradient(gathered)
        if own == 0:
            return self.anchor(gathered, x_NW)
        # A rank that owns everything would otherwise leave out the collective in which the others wait for it.
        parts = [ops.depend(x_NW, gathered)]
        if start:
            parts = [narrow(gathered, 0, 0, start), x_NW]
        if start + own < total:
            parts.append(narrow(gathered, 0, start + own, total - start - own))
        return ops.cat(parts, 0)


def _placed(x, start, total):
    """x [n, ...] as rows start to start + n of `total` rows, the others zero."""
    rows, rest = x.shape[0], x.shape[1:]
    parts = [x]
    if start:
        parts = [ops.zeros((start, *rest), x.dtype), x]
    if start + rows < total:
        parts.append(ops.zeros((total - start - rows, *rest), x.dtype))
    return ops.cat(parts, 0)


@constexpr
def _num_bytes(shape, dtype):
    size = {ms.float64: 8, ms.int64: 8, ms.float32: 4, ms.int32: 4, ms.uint8: 1, ms.int8: 1, ms.bool_: 1,
            ms.hifloat8: 1}.get(dtype, 2)
    for n in shape:
        size *= n
    return size


@constexpr
def _total(counts):
    return sum(map(sum, counts)) if counts and isinstance(counts[0], tuple) else sum(counts)


@constexpr
def _scaled(rows, width):
    return tuple(n * width for n in rows)


@constexpr
def _has_idle_rank(counts):
    """Some rank sends or receives nothing: an empty tensor, on which HCCL's operators are not relied upon."""
    return not all(map(sum, counts)) or not all(map(sum, zip(*counts, strict=True)))


@constexpr
def _rows_to_others(counts, index):
    return sum(counts[index]) - counts[index][index]


@constexpr
def _splits(counts, index, width):
    """Elements sent to and received from every rank."""
    return tuple(n * width for n in counts[index]), tuple(row[index] * width for row in counts)


@constexpr
def _placement(counts, index):
    """First row and number of rows of this rank's messages in a buffer of the messages of all ranks; its rows."""
    sent = [sum(row) for row in counts]
    return sum(sent[:index]), sent[index], sum(sent)


@constexpr
def _incoming(counts, index):
    """(first, last) rows of the messages to this rank in that buffer, empty ones left out."""
    spans, start = [], 0
    for row in counts:
        first = start + sum(row[:index])
        if row[index]:
            spans.append((first, first + row[index]))
        start += sum(row)
    return tuple(spans)
