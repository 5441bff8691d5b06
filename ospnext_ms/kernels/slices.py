"""Parts of tensors, in the forms for which each device has fast operators. All are exact copies.

On Ascend Python's slices, ops.split and ops.gather take the legacy operator path, and the gradient of a gather is a
scatter; mint's forms, and a gather with the inverse permutation, do not.
"""

from mindspore import mint, nn, ops

from ospnext_ms.kernels.device import for_ascend, on_ascend


def narrow(x, axis, start, length):
    """`length` entries of `axis` (0, 1 or 2) from `start` on; static numbers. x itself where that is all of it."""
    if length == x.shape[axis]:
        return x
    if for_ascend():
        return mint.narrow(x, axis, start, length)
    if axis == 0:
        return x[start : start + length]
    if axis == 1:
        return x[:, start : start + length]
    return x[:, :, start : start + length]


def split(x, sizes, axis):
    """Tuple of consecutive parts of the given sizes along `axis`."""
    if for_ascend():
        return mint.split(x, sizes, axis)
    return ops.split(x, sizes, axis)


def chunk(x, count, axis):
    """Tuple of `count` equal parts along `axis`."""
    if for_ascend():
        return mint.chunk(x, count, axis)
    return ops.chunk(x, count, axis)


def pair(x):
    """Every entry twice, along a new last axis: [...] -> [..., 2]."""
    return mint.stack((x, x), -1) if for_ascend() else ops.stack((x, x), -1)


def take(x, indices, axis):
    """Entries `indices` (int32 [n]) of `axis`. Where they are a permutation and a gradient is asked for: Permute."""
    if for_ascend():
        return mint.index_select(x, axis, indices)
    return ops.gather(x, indices, axis)


def embedding(table, ids):
    """Rows `ids` (int [...]) of table [n, C]: [..., C]."""
    if for_ascend():
        return mint.nn.functional.embedding(ids, table)
    return ops.gather(table, ids, 0)


class Permute(nn.Cell):
    """Entries of an axis in another order.

    Inputs: x; order int32 [n], a permutation of the n entries; inverse int32 [n], the one that undoes it, which is what
    the gradient is gathered with. Output: shape and dtype of x.
    """

    def __init__(self, axis):
        super().__init__()
        self.axis = axis
        self.by_mint = on_ascend()

    def construct(self, x, order, inverse):
        return self.entries(x, order)

    def bprop(self, x, order, inverse, out, dout):
        return self.entries(dout, inverse), ops.zeros_like(order), ops.zeros_like(inverse)

    def entries(self, x, indices):
        """x in the order of the indices."""
        return mint.index_select(x, self.axis, indices) if self.by_mint else ops.gather(x, indices, self.axis)
