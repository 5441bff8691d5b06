"""The packed token sequence of one device: how it is ordered, switched, rotated and attended to.

B batch, N tokens, C width, H heads, D head width, T/h/w grid. A model asks a sequence object for everything that
depends on the order of its tokens; `PackedSequence` holds the whole video on one device, `parallel.ParallelSequence` a
shard of it. Both have the methods enter, order, switch, share, common_mean, own_heads, attend_full,
attend_sparse and leave.
"""

from dataclasses import dataclass
from itertools import groupby

import torch

from ospnext_ms.skiparse import SkiparsePlan

ROPE_THETA = 10000.0


@dataclass(frozen=True)
class Order:
    """The tokens of one pattern on one grid, as blocks need them.

    `grid` (T, h, w); `pattern` "token" or "group"; `runs` the consecutive sub-sequences of equal length as
    (count, length) pairs, empty ones left out; `cos_Nd` and `sin_Nd` [N, D/2] fp32, rotation of every token.
    """

    grid: tuple
    pattern: str
    runs: tuple
    cos_Nd: torch.Tensor
    sin_Nd: torch.Tensor


def runs_of(lengths):
    """Consecutive equal lengths as (count, length) pairs without the empty ones: (3, 3, 0, 2) -> ((2, 3), (1, 2))."""
    return tuple((len(list(run)), length) for length, run in groupby(n for n in lengths if n))


def rotary_tables(grid, head_dim, natural_indices):
    """cos and sin [N, D/2] fp32 of the tokens with the given natural indices, computed in float64.

    The D/2 pairs are split into D/2 - 2*floor(D/6), floor(D/6), floor(D/6) for t, h, w (Wan2.1, arXiv 2503.20314).
    """
    _, height, width = grid
    positions = (natural_indices // (height * width), natural_indices // width % height, natural_indices % width)
    third = head_dim // 6
    parts = (head_dim // 2 - 2 * third, third, third)
    angles = torch.cat([
        position.double()[:, None] * ROPE_THETA ** (-torch.arange(n, dtype=torch.float64, device=position.device) / n)
        for position, n in zip(positions, parts, strict=True)
    ], dim=1)
    return angles.cos().float(), angles.sin().float()


def attend_sub_sequences(attention, q_BNHD, k_BNHD, v_BNHD, runs):
    """Attention inside consecutive sub-sequences; N is the sum of count * length over `runs`.

    Returns a tuple of [B, n, H, D], to be read one after the other (attention_backends.one_call_a_run).
    """
    return attention.sub_sequences(q_BNHD, k_BNHD, v_BNHD, runs) if runs else (v_BNHD,)


class PackedSequence:
    """The whole video on one device, packed in token or group order (see SkiparsePlan)."""

    def __init__(self, sparse_ratio):
        self.sparse_ratio = sparse_ratio
        self._cache = {}

    def order(self, grid, pattern, head_dim, device):
        """The Order of `pattern`, built once per grid, head width and device."""

        def build():
            plan = self._plan(grid)
            natural = torch.from_numpy(plan.order(pattern)).to(device)
            return Order(grid, pattern, runs_of(plan.lengths(pattern)), *rotary_tables(grid, head_dim, natural))

        return self._once(("order", grid, pattern, head_dim, str(device)), build)

    def enter(self, x_BNC, grid):
        """Natural order -> token order."""
        return self._gather(x_BNC, grid, "token_order")

    def switch(self, x_BNC, owed, kernels, grid, target):
        """The other pattern's order -> the order of `target`: (x, owed, gather [N] or None).

        `owed` is an update (y, gate) that is still to be done, or None. What comes back of it and of the gather is left
        to the next block's first norm. With gradients no gather is.
        """
        gather_N = self._index(grid, "token_to_group" if target == "group" else "group_to_token", x_BNC.device)
        if owed is None and torch.is_grad_enabled():
            return x_BNC.index_select(1, gather_N), None, None
        return x_BNC, owed, gather_N

    def leave(self, x_BNC, grid, pattern):
        """Order of `pattern` -> natural order."""
        return self._gather(x_BNC, grid, pattern)

    def share(self, x_BNHD, order, sparse):
        """What attention needs of q, k or v from elsewhere: nothing here."""
        return x_BNHD

    def common_mean(self, mean_BC, sparse):
        """Of a mean over the tokens here that over all tokens of an attention call, or what stands for it: itself."""
        return mean_BC

    def own_heads(self, scales, sparse):
        """Of scales [H] those of the heads that attention sees here: all."""
        return scales

    def attend_full(self, attention, q_BNHD, k_BNHD, v_BNHD, order):
        """Every token attends to every token, in whatever order they stand. Returns parts, see attend_sub_sequences."""
        return (attention(q_BNHD, k_BNHD, v_BNHD),)

    def attend_sparse(self, attention, q_BNHD, k_BNHD, v_BNHD, order):
        """Every token attends to its own sub-sequence. Returns parts, see attend_sub_sequences."""
        return attend_sub_sequences(attention, q_BNHD, k_BNHD, v_BNHD, order.runs)

    def _gather(self, x_BNC, grid, name):
        return x_BNC.index_select(1, self._index(grid, name, x_BNC.device))

    def _index(self, grid, name, device):
        def build():
            plan = self._plan(grid)
            indices = plan.natural_from(name) if name in ("token", "group") else getattr(plan, name)
            return torch.from_numpy(indices).to(device)

        return self._once(("gather", grid, name, str(device)), build)

    def _plan(self, grid):
        return self._once(("plan", grid), lambda: SkiparsePlan(grid, self.sparse_ratio))

    def _once(self, key, build):
        """Tables are kept outside inference mode, so that those built by a generation also serve training."""
        if key not in self._cache:
            with torch.inference_mode(False):
                self._cache[key] = build()
        return self._cache[key]
