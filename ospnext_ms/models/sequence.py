"""The packed token sequence of one device: how it is ordered, switched and attended to.

B batch, N tokens, H heads, D head width. A model holds one sequence object and asks it for everything that depends on
the order of the tokens; `PackedSequence` keeps the whole video on one device.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr

from ospnext_ms.kernels.rotary import rotations
from ospnext_ms.kernels.slices import Permute, narrow, split
from ospnext_ms.models.rope import rope_table
from ospnext_ms.skiparse import SkiparsePlan


@constexpr
def _order(grid, sparse_ratio, pattern):
    """Gather into the order of `pattern`, and back."""
    plan = SkiparsePlan(grid, sparse_ratio)
    return Tensor(plan.order(pattern), ms.int32), Tensor(plan.natural_from(pattern), ms.int32)


@constexpr
def _switch(grid, sparse_ratio, target):
    """Gather from the other pattern's order into that of `target`, and back."""
    plan = SkiparsePlan(grid, sparse_ratio)
    gathers = plan.token_to_group, plan.group_to_token
    order, inverse = gathers if target == "group" else gathers[::-1]
    return Tensor(order, ms.int32), Tensor(inverse, ms.int32)


@constexpr
def _rope(grid, sparse_ratio, pattern, head_dim):
    return rotations(*rope_table(grid, head_dim, SkiparsePlan(grid, sparse_ratio).order(pattern)))


@constexpr
def _lengths(grid, sparse_ratio, pattern):
    return SkiparsePlan(grid, sparse_ratio).lengths(pattern)


@constexpr
def _equal_length_groups(lengths):
    """Positions of the non-empty sub-sequences, grouped by length: ((position, ...), ...)."""
    distinct = sorted({length for length in lengths if length}, reverse=True)
    return tuple(tuple(i for i, length in enumerate(lengths) if length == wanted) for wanted in distinct)


class PackedSequence(nn.Cell):
    """The whole video on one device, packed in token or group order (see SkiparsePlan).

    Args:
        sparse_ratio: P.

    `grid` is (T, H, W) and `pattern` "token" or "group" throughout; both are static.
    """

    def __init__(self, sparse_ratio):
        super().__init__()
        self.sparse_ratio = sparse_ratio
        self.permute = Permute(1)

    def enter(self, x_BNC, grid):
        """Natural order -> token order."""
        order, inverse = _order(grid, self.sparse_ratio, "token")
        return self.permute(x_BNC, order, inverse)

    def switch(self, x_BNC, grid, target):
        """The other pattern's order -> the order of `target`."""
        order, inverse = _switch(grid, self.sparse_ratio, target)
        return self.permute(x_BNC, order, inverse)

    def leave(self, x_BNC, grid, pattern):
        """Order of `pattern` -> natural order."""
        order, inverse = _order(grid, self.sparse_ratio, pattern)
        return self.permute(x_BNC, inverse, order)

    def rope(self, grid, pattern, head_dim):
        """(cos, sin) [1, N, 1, D] fp32 in the order of `pattern`, see kernels.rotary.rotations."""
        return _rope(grid, self.sparse_ratio, pattern, head_dim)

    def attend_full(self, attention, q_BNHD, k_BNHD, v_BNHD, grid, pattern):
        """Every token attends to every token, in whatever order they stand (here that of `pattern`)."""
        return attention(q_BNHD, k_BNHD, v_BNHD)

    def attend_sparse(self, attention, q_BNHD, k_BNHD, v_BNHD, grid, pattern):
        """Every token attends to its own sub-sequence of `pattern`, in whose order the tokens stand."""
        lengths = _lengths(grid, self.sparse_ratio, pattern)
        return attend_sub_sequences(attention, q_BNHD, k_BNHD, v_BNHD, lengths)


def attend_sub_sequences(attention, q_BNHD, k_BNHD, v_BNHD, lengths):
    """Attention inside consecutive sub-sequences of the given lengths, one call per distinct length.

    q, k, v [B, N, H, D] with N = sum(lengths); lengths static, 0 allowed. Returns [B, N, H, D].
    """
    batch, _, num_heads, head_dim = q_BNHD.shape
    groups = _equal_length_groups(lengths)
    if len(groups) == 1 and len(groups[0]) == len(lengths):
        shape = (batch * len(lengths), lengths[0], num_heads, head_dim)
        return attention(q_BNHD.reshape(shape), k_BNHD.reshape(shape), v_BNHD.reshape(shape)).reshape(q_BNHD.shape)
    q_parts, k_parts, v_parts = (split(x, lengths, 1) for x in (q_BNHD, k_BNHD, v_BNHD))
    outputs = list(q_parts)
    for positions in groups:
        q, k, v = (ops.cat([parts[i] for i in positions], 0) for parts in (q_parts, k_parts, v_parts))
        out = attention(q, k, v)
        for n, i in enumerate(positions):
            outputs[i] = narrow(out, 0, n * batch, batch)
    return ops.cat(outputs, 1)
