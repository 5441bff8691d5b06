"""Index mathematics of Skiparse-2D (OSP-Next, arXiv 2605.28691): which tokens attend to each other, and who owns them.

NumPy only. A video is a grid (T, H, W) of tokens, natural order is (t, h, w) row by row. With sparse ratio P there are
P^2 sub-sequences in each of two patterns:

    token pattern    id = P * (h mod P)             + (w mod P)
    group pattern    id = P * (floor(h/P) mod P)    + (floor(w/P) mod P)

A sparse block attends only inside the sub-sequences of its pattern. The packed order of a pattern lists the tokens by
sub-sequence id and, inside one, in natural order. Nothing is padded: where H or W is not divisible by P^2 the
sub-sequences differ in length, and on small grids some are empty.

Parallel ownership (Sparse Sequence Parallelism): rank (s, u) of S x U holds P^2/S whole sub-sequences of a pattern, of
each the tokens whose spatial P^2 x P^2 tile belongs to u. A tile belongs to the same u in both patterns, so a switch
between the patterns only moves tokens between ranks of equal u.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

PATTERNS = ("token", "group")


def other_pattern(pattern: str) -> str:
    """The pattern a switch from `pattern` leads to."""
    return PATTERNS[1 - PATTERNS.index(pattern)]


class SkiparsePlan:
    """Orders, lengths and switches of one token grid.

    Args:
        grid: (T, H, W) tokens in time, height and width, each at least 1.
        sparse_ratio: P, at least 1 (1 makes one sub-sequence of everything).
        skiparse_parallel: S ranks that share the sub-sequences; divides P^2.
        ulysses_parallel: U ranks that share every sub-sequence.

    Raises:
        ValueError: a grid, ratio or degree that is not valid.
    """

    def __init__(self, grid: Sequence[int], sparse_ratio: int = 2, skiparse_parallel: int = 1,
                 ulysses_parallel: int = 1):
        grid = tuple(int(n) for n in grid)
        if len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"grid is {grid}; it must be three positive numbers (T, H, W)")
        if sparse_ratio < 1:
            raise ValueError(f"sparse_ratio is {sparse_ratio}; it must be at least 1")
        valid = [n for n in range(1, sparse_ratio**2 + 1) if sparse_ratio**2 % n == 0]
        if skiparse_parallel not in valid:
            raise ValueError(f"skiparse_parallel is {skiparse_parallel}; valid for ratio {sparse_ratio}: {valid}")
        if ulysses_parallel < 1:
            raise ValueError(f"ulysses_parallel is {ulysses_parallel}; it must be at least 1")
        self.grid = grid
        self.sparse_ratio = sparse_ratio
        self.skiparse_parallel = skiparse_parallel
        self.ulysses_parallel = ulysses_parallel

    @property
    def num_tokens(self) -> int:
        """N = T*H*W."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def num_sub_sequences(self) -> int:
        """P^2."""
        return self.sparse_ratio**2

    @cached_property
    def _ids(self) -> dict[str, np.ndarray]:
        """{pattern: sub-sequence id of every token, [N] int64, natural order}."""
        num_frames, height, width = self.grid
        ratio = self.sparse_ratio
        h, w = np.arange(height)[:, None], np.arange(width)[None, :]
        token_hw = ratio * (h % ratio) + w % ratio
        group_hw = ratio * (h // ratio % ratio) + w // ratio % ratio
        return {"token": np.tile(token_hw.ravel(), num_frames), "group": np.tile(group_hw.ravel(), num_frames)}

    def order(self, pattern: str) -> np.ndarray:
        """Natural indices in the packed order of `pattern`, [N] int64."""
        return {"token": self.token_order, "group": self.group_order}[pattern]

    def lengths(self, pattern: str) -> tuple[int, ...]:
        """Tokens of each sub-sequence of `pattern`, P^2 integers in id order; some may be 0."""
        return {"token": self.token_lengths, "group": self.group_lengths}[pattern]

    @cached_property
    def token_order(self) -> np.ndarray:
        """Natural indices in token order, [N] int64."""
        return np.argsort(self._ids["token"], kind="stable")

    @cached_property
    def group_order(self) -> np.ndarray:
        """Natural indices in group order, [N] int64."""
        return np.argsort(self._ids["group"], kind="stable")

    @cached_property
    def token_lengths(self) -> tuple[int, ...]:
        """Tokens of each token sub-sequence, a tuple of P^2 in id order."""
        return self._lengths("token")

    @cached_property
    def group_lengths(self) -> tuple[int, ...]:
        """Tokens of each group sub-sequence, a tuple of P^2 in id order."""
        return self._lengths("group")

    def _lengths(self, pattern: str) -> tuple[int, ...]:
        return tuple(np.bincount(self._ids[pattern], minlength=self.num_sub_sequences).tolist())

    @cached_property
    def token_to_group(self) -> np.ndarray:
        """Gather indices: x_group = x_token[token_to_group]."""
        return np.argsort(self.token_order)[self.group_order]

    @cached_property
    def group_to_token(self) -> np.ndarray:
        """Gather indices: x_token = x_group[group_to_token]."""
        return np.argsort(self.token_to_group)

    def natural_from(self, pattern: str) -> np.ndarray:
        """Gather indices: x_natural = x_packed[natural_from(pattern)]."""
        return np.argsort(self.order(pattern))

    def owned_sub_sequences(self, pattern: str, s: int) -> list[int]:
        """Ids of the P^2/S sub-sequences that rank s owns, ascending.

        Sub-sequences sorted by length are dealt out back and forth, so that long ones meet short ones.
        """
        count, degree = self.num_sub_sequences, self.skiparse_parallel
        by_length = np.argsort(-np.asarray(self.lengths(pattern)), kind="stable").reshape(-1, degree)
        by_length[1::2] = by_length[1::2, ::-1]
        owned = sorted(sorted(column) for column in by_length.T.tolist())
        assert sum(map(len, owned)) == count
        return owned[s]

    @cached_property
    def _ulysses_owner(self) -> np.ndarray:
        """Ulysses rank u of every token, [N], natural order: tiles in (t, h-tile, w-tile) order, cut near-equally."""
        num_frames, height, width = self.grid
        edge = self.num_sub_sequences
        tiles_h, tiles_w = -(-height // edge), -(-width // edge)
        t, h, w = np.ogrid[:num_frames, :height, :width]
        tile = ((t * tiles_h + h // edge) * tiles_w + w // edge).ravel()
        size = np.bincount(tile)
        middle = np.cumsum(size) - size / 2
        return (middle * self.ulysses_parallel // self.num_tokens).astype(np.int64)[tile]

    def _skiparse_owner(self, pattern: str) -> np.ndarray:
        """Skiparse rank s of every token, [N], natural order."""
        owner = np.empty(self.num_sub_sequences, dtype=np.int64)
        for s in range(self.skiparse_parallel):
            owner[self.owned_sub_sequences(pattern, s)] = s
        return owner[self._ids[pattern]]

    def rank_tokens(self, pattern: str, s: int, u: int) -> np.ndarray:
        """Natural indices of the tokens of rank (s, u), in the rank's order: by sub-sequence id, then natural."""
        order = self.order(pattern)
        mine = (self._skiparse_owner(pattern) == s) & (self._ulysses_owner == u)
        return order[mine[order]]

    def rank_lengths(self, pattern: str, s: int, u: int) -> tuple[int, ...]:
        """Tokens of rank (s, u) in each sub-sequence it owns, a tuple in the order of owned_sub_sequences."""
        ids = self._ids[pattern][self.rank_tokens(pattern, s, u)]
        counts = np.bincount(ids, minlength=self.num_sub_sequences)
        return tuple(counts[self.owned_sub_sequences(pattern, s)].tolist())

    def switch_splits(self, s: int, u: int) -> tuple[list[int], list[int]]:
        """Tokens that rank (s, u) sends to and receives from each (s', u) in the switch token -> group.

        Returns (send, receive), two lists of S integers. The switch group -> token has them exchanged.
        """
        ranks = range(self.skiparse_parallel)
        token, group = self._skiparse_owner("token"), self._skiparse_owner("group")
        same_u = self._ulysses_owner == u
        send = [int(np.sum(same_u & (token == s) & (group == peer))) for peer in ranks]
        receive = [int(np.sum(same_u & (group == s) & (token == peer))) for peer in ranks]
        return send, receive

    def switch_gathers(self, source: str, s: int, u: int) -> tuple[np.ndarray, np.ndarray]:
        """Local orders around the All-to-All of the switch source -> other pattern.

        Returns (pack, unpack): shard[pack] is the send buffer, sorted by destination; received[unpack] is the new
        shard. Both sides list the tokens of one message in natural order.
        """
        target = other_pattern(source)
        before, after = self.rank_tokens(source, s, u), self.rank_tokens(target, s, u)
        pack = np.lexsort((before, self._skiparse_owner(target)[before]))
        received = np.lexsort((after, self._skiparse_owner(source)[after]))
        return pack, np.argsort(received)
