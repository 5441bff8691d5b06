"""The token sequence of a video that S x U ranks share: Sparse Sequence Parallelism (OSP-Next, arXiv 2605.28691).

Rank (s, u) holds the tokens SkiparsePlan.rank_tokens(pattern, s, u). Three exchanges are all there is:

    switch         token <-> group: one All-to-All of the residual stream among the S ranks of equal u
    full block     Ulysses (arXiv 2309.14509) over all S*U ranks: q, k, v of all own tokens against all tokens of some
                   heads, and back after the attention
    sparse block   the same among the U ranks of equal s, inside their sub-sequences; nothing where U = 1

Shards may be of unequal length. An empty one is held as one row of padding, which takes part in no exchange.

B batch, N tokens of the video, n of this rank (or of a group), C width, H heads, D head width, R ranks of a group.
"""

from functools import lru_cache

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import int32 as ms_int32
from mindspore.ops import constexpr

from ospnext_ms.kernels.collectives import AllToAll, GatherShared
from ospnext_ms.kernels.rotary import rotations
from ospnext_ms.kernels.slices import Permute, chunk, take
from ospnext_ms.models.rope import rope_table
from ospnext_ms.models.sequence import attend_sub_sequences
from ospnext_ms.skiparse import SkiparsePlan, other_pattern


class ParallelSequence(nn.Cell):
    """This rank's shard of a video; the methods are those of models.sequence.PackedSequence.

    Every rank is given the whole video and receives the whole result. Gradients of parameters are those of the rank's
    own tokens: they have to be summed over the ranks of the video (see parallel.gradients).

    Args:
        sparse_ratio: P. num_heads: H, divisible by S*U. mesh: parallel.mesh.Mesh. switch_dtype: dtype of what a switch
            sends, None for that of its input; its output has that of its input.

    Raises:
        ValueError: the heads cannot be shared by the ranks of the video.
    """

    def __init__(self, sparse_ratio, num_heads, mesh, switch_dtype=None):
        super().__init__()
        if num_heads % mesh.video_group.size:
            raise ValueError(f"{num_heads} heads cannot be shared by {mesh.video_group.size} ranks")
        self.switch_dtype = switch_dtype
        self.degrees = (sparse_ratio, mesh.skiparse, mesh.ulysses)
        self.s, self.u = mesh.s, mesh.u
        self.skiparse, self.ulysses = mesh.skiparse, mesh.ulysses
        self.index = mesh.video_group.index
        self.switch_exchange = AllToAll(mesh.skiparse_group)
        self.full_exchange = AllToAll(mesh.video_group)
        self.sparse_exchange = AllToAll(mesh.ulysses_group)
        self.gather = GatherShared(mesh.video_group)
        self.permute_rows, self.permute_tokens = Permute(0), Permute(1)

    def enter(self, x_BNC, grid):
        """Whole video in natural order -> own tokens in token order."""
        return take(x_BNC, _own_tokens(grid, self.degrees, "token", self.s, self.u), 1)

    def switch(self, x_BnC, grid, target):
        """Own tokens of the other pattern -> own tokens of `target`."""
        counts, pack, unpack = _switch(grid, self.degrees, target, self.s, self.u)
        x_BnC = self.permute_tokens(x_BnC, *pack)
        if self.skiparse == 1:
            return self.permute_tokens(x_BnC, *unpack)
        batch, _, width = x_BnC.shape
        dtype = x_BnC.dtype
        x_BnC = x_BnC.astype(self.switch_dtype or dtype)
        rows = self.switch_exchange(_rows_first(x_BnC).reshape(-1, batch * width), counts, "switch")
        return _batch_first(self.permute_rows(rows, *unpack).reshape(-1, batch, width)).astype(dtype)

    def leave(self, x_BnC, grid, pattern):
        """Own tokens -> whole video in natural order, on every rank."""
        batch, _, width = x_BnC.shape
        rows, natural = _leave(grid, self.degrees, pattern)
        x_NW = self.gather(_rows_first(x_BnC).reshape(-1, batch * width), rows, "leave")
        return _batch_first(self.permute_rows(x_NW, *natural).reshape(-1, batch, width))

    def rope(self, grid, pattern, head_dim):
        """(cos, sin) [1, n, 1, D] fp32 of the own tokens, see kernels.rotary.rotations."""
        return _rope(grid, self.degrees, pattern, self.s, self.u, head_dim)

    def attend_full(self, attention, q_BnHD, k_BnHD, v_BnHD, grid, pattern):
        """Every token attends to every token of the video, in whatever order they stand."""
        rows = _video_rows(grid, self.degrees, pattern)
        if len(rows) == 1:
            return attention(q_BnHD, k_BnHD, v_BnHD)
        received = _to_heads(self.full_exchange, (q_BnHD, k_BnHD, v_BnHD), rows, "full")
        q_BNhD, k_BNhD, v_BNhD = _split_heads(received, q_BnHD.shape, len(rows))
        out_NBhD = _rows_first(attention(q_BNhD, k_BNhD, v_BNhD))
        return _to_tokens(self.full_exchange, out_NBhD, q_BnHD.shape, rows, self.index, "full")

    def attend_sparse(self, attention, q_BnHD, k_BnHD, v_BnHD, grid, pattern):
        """Every token attends to its own sub-sequence of `pattern`."""
        rows, lengths, inwards, outwards = _sub_sequences(grid, self.degrees, pattern, self.s)
        if sum(lengths) == 0:
            return v_BnHD
        if len(rows) == 1:
            return attend_sub_sequences(attention, q_BnHD, k_BnHD, v_BnHD, lengths)
        received = _to_heads(self.sparse_exchange, (q_BnHD, k_BnHD, v_BnHD), rows, "sparse")
        received = self.permute_rows(received, *inwards)
        q_BNhD, k_BNhD, v_BNhD = _split_heads(received, q_BnHD.shape, len(rows))
        out_BNhD = attend_sub_sequences(attention, q_BNhD, k_BNhD, v_BNhD, lengths)
        out_NBhD = self.permute_rows(_rows_first(out_BNhD), *outwards)
        return _to_tokens(self.sparse_exchange, out_NBhD, q_BnHD.shape, rows, self.u, "sparse")


def _rows_first(x):
    """[B, n, ...] -> [n, B, ...]."""
    if x.shape[0] == 1:
        return x.reshape(x.shape[1], 1, *x.shape[2:])
    return x.swapaxes(0, 1)


def _batch_first(x):
    """[n, B, ...] -> [B, n, ...]."""
    if x.shape[1] == 1:
        return x.reshape(1, x.shape[0], *x.shape[2:])
    return x.swapaxes(0, 1)


def _to_heads(exchange, tensors, rows, label):
    """Tensors [B, n, H, D] of the own tokens -> all tokens of the group, by rank, of the own heads [N, X*B*h*D]."""
    ranks = len(rows)
    batch, own, heads, head_dim = tensors[0].shape
    x = ops.cat([tensor.expand_dims(0) for tensor in tensors], 0)
    x = x.reshape(len(tensors), batch, own, ranks, heads // ranks, head_dim)
    x = x.transpose(3, 2, 0, 1, 4, 5).reshape(ranks * own, -1)
    return exchange(x, _everything_to_all(rows), label)


def _split_heads(x_NW, shape, ranks):
    """[N, 3*B*h*D] -> q, k, v, each [B, N, h, D]."""
    batch, _, heads, head_dim = shape
    x = x_NW.reshape(-1, 3, batch, heads // ranks, head_dim).transpose(1, 2, 0, 3, 4)
    shape = x.shape[1:]
    return tuple(part.reshape(shape) for part in chunk(x, 3, 0))


def _to_tokens(exchange, out_NBhD, shape, rows, index, label):
    """All tokens of the group, by rank, of the own heads -> own tokens, all heads: `shape` [B, n, H, D]."""
    ranks = len(rows)
    batch, own, heads, head_dim = shape
    received = exchange(out_NBhD.reshape(out_NBhD.shape[0], -1), _own_rows_of_all(rows), label)
    if rows[index] == 0:
        received = ops.tile(received, (ranks, 1))
    x = received.reshape(ranks, own, batch, heads // ranks, head_dim)
    return x.transpose(2, 1, 0, 3, 4).reshape(shape)


@lru_cache(maxsize=64)
def _plan(grid, degrees):
    return SkiparsePlan(grid, *degrees)


def _or_padding(indices):
    """int32 gather indices; of nothing, index 0, which fetches a row of padding."""
    return Tensor(indices if len(indices) else [0], ms_int32)


def _with_inverse(permutation):
    """Two gathers that undo each other, of a permutation; see _or_padding."""
    return _or_padding(permutation), _or_padding(np.argsort(permutation))


@lru_cache(maxsize=1024)
def _count_rows(grid, degrees, pattern):
    _, skiparse, ulysses = degrees
    plan = _plan(grid, degrees)
    return tuple(len(plan.rank_tokens(pattern, s, u)) for s in range(skiparse) for u in range(ulysses))


@constexpr
def _own_tokens(grid, degrees, pattern, s, u):
    return _or_padding(_plan(grid, degrees).rank_tokens(pattern, s, u))


@constexpr
def _switch(grid, degrees, target, s, u):
    """(counts between the S ranks, gather before the exchange, gather after it)."""
    plan = _plan(grid, degrees)
    counts = tuple(tuple(plan.switch_splits(peer, u)[0]) for peer in range(degrees[1]))
    if target == "token":
        counts = tuple(zip(*counts, strict=True))
    pack, unpack = plan.switch_gathers(other_pattern(target), s, u)
    return counts, _with_inverse(pack), _with_inverse(unpack)


@constexpr
def _leave(grid, degrees, pattern):
    """(tokens of every rank of the video, gather from their concatenation to natural order)."""
    plan = _plan(grid, degrees)
    _, skiparse, ulysses = degrees
    ranks = [(s, u) for s in range(skiparse) for u in range(ulysses)]
    order = np.concatenate([plan.rank_tokens(pattern, s, u) for s, u in ranks])
    return _count_rows(grid, degrees, pattern), _with_inverse(np.argsort(order))


@constexpr
def _rope(grid, degrees, pattern, s, u, head_dim):
    tokens = _plan(grid, degrees).rank_tokens(pattern, s, u)
    return rotations(*rope_table(grid, head_dim, tokens if len(tokens) else [0]))


@constexpr
def _video_rows(grid, degrees, pattern):
    return _count_rows(grid, degrees, pattern)


@constexpr
def _sub_sequences(grid, degrees, pattern, s):
    """What the U ranks (s, *) need for their sub-sequences.

    (tokens of each rank, lengths of the sub-sequences, gather from the ranks' concatenation to sub-sequence order, and
    back).
    """
    plan, ulysses = _plan(grid, degrees), degrees[2]
    parts = np.array([plan.rank_lengths(pattern, s, u) for u in range(ulysses)])
    ids = np.concatenate([np.repeat(np.arange(parts.shape[1]), part) for part in parts])
    inwards = np.argsort(ids, kind="stable")
    rows = tuple(parts.sum(1).tolist())
    return rows, tuple(parts.sum(0).tolist()), _with_inverse(inwards), _with_inverse(np.argsort(inwards))


@constexpr
def _everything_to_all(rows):
    return tuple((n,) * len(rows) for n in rows)


@constexpr
def _own_rows_of_all(rows):
    return (tuple(rows),) * len(rows)
