"""The packed sequence of one video on several processes: Sparse Sequence Parallelism (SSP) and Ulysses.

B batch, N tokens, C width, H heads, D head width, R ranks of a group. S*U processes share a video (S, U and who owns
which token: SkiparsePlan). A process holds whole sub-sequences (U = 1), so sparse attention needs no communication and
a switch between the patterns is one All-to-All of the residual stream. With U > 1 Ulysses exchanges heads for tokens
inside every sub-sequence, in full blocks over all S*U processes, on the same shards. Sources: arXiv 2605.28691 (SSP),
arXiv 2309.14509 (Ulysses).

Gradients: every process computes the loss of the whole output; the gradient of a parameter is the sum over processes.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from ospnext_ms.skiparse import SkiparsePlan, other_pattern
from tools.torch_reference.gpu.float8 import quantised
from tools.torch_reference.gpu.sequence import Order, attend_sub_sequences, rotary_tables, runs_of

EXCHANGES = ("overlapped", "fused")
# What a switch sends: the residual stream as it is, rounded, or as codes with a scale a token (inference only). Errors
# of a whole network: `precision network`. fp16 costs as little as bf16 and an eighth of its error; a stream beyond
# 65,504 comes out as infinity, which nobody overlooks.
SWITCH_DTYPES = ("stream", "fp16", "bf16", "e4m3")
SWITCH_DTYPE = "fp16"


class Traffic:
    """Bytes this process has sent to other processes, `by_kind`: "switch", "ulysses" and "leave"."""

    def __init__(self):
        self.by_kind = Counter()

    @property
    def sent(self):
        return self.by_kind.total()


@dataclass(frozen=True)
class Mesh:
    """This process among the S*U that share a video: rank = s*U + u. `skiparse_group` has equal u, ordered by s;
    `ulysses_group` equal s, ordered by u; `video_group` all of them, ordered by rank.
    """

    rank: int
    skiparse_parallel: int
    ulysses_parallel: int
    skiparse_group: Any
    ulysses_group: Any
    video_group: Any

    @property
    def size(self):
        return self.skiparse_parallel * self.ulysses_parallel

    @property
    def s(self):
        return self.rank // self.ulysses_parallel

    @property
    def u(self):
        return self.rank % self.ulysses_parallel

    @property
    def name(self):
        return f"{self.skiparse_parallel}x{self.ulysses_parallel}"


def valid_degrees(size, sparse_ratio, num_heads):
    """Every (S, U) with S*U = size that a model allows: S divides P^2, S*U divides the heads."""
    if num_heads % size:
        return []
    return [(s, size // s) for s in range(1, sparse_ratio**2 + 1) if sparse_ratio**2 % s == 0 and size % s == 0]


def create_mesh(skiparse_parallel, ulysses_parallel, device_type):
    """Mesh of S x U over all processes of torch.distributed; every process must call it.

    Raises ValueError where S*U is not their number.
    """
    size = dist.get_world_size()
    if skiparse_parallel * ulysses_parallel != size:
        raise ValueError(f"skiparse_parallel {skiparse_parallel} times ulysses_parallel {ulysses_parallel} must be the "
                         f"number of processes, {size}")
    mesh = init_device_mesh(device_type, (skiparse_parallel, ulysses_parallel), mesh_dim_names=("skiparse", "ulysses"))
    return Mesh(dist.get_rank(), skiparse_parallel, ulysses_parallel, mesh.get_group("skiparse"),
                mesh.get_group("ulysses"), dist.group.WORLD)


class Pending:
    """A tensor that is on its way; `wait` returns it, or `view` of it. `sent` stays alive until then."""

    def __init__(self, tensor, work=None, sent=None, view=None):
        self._tensor, self._work, self._sent, self._view = tensor, work, sent, view

    def seen_as(self, view):
        """The same with a function applied on arrival."""
        return Pending(self._tensor, self._work, self._sent, view)

    def wait(self):
        if self._work is not None:
            self._work.wait()
            self._work = self._sent = None
        return self._tensor if self._view is None else self._view(self._tensor)


class Channel:
    """All-to-All with split sizes in one group, counted in `traffic` under `kind`."""

    def __init__(self, group, traffic, kind):
        self.group, self.traffic, self.kind = group, traffic, kind
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)

    def start(self, x_N, send, receive, wait=False):
        """Sends send[r] consecutive entries [sum(send), ...] to every rank r and receives receive[r]: a Pending."""
        x_N = x_N.contiguous()
        received = x_N.new_empty(sum(receive), *x_N.shape[1:])
        row_bytes = x_N.element_size() * x_N[:1].numel()
        self.traffic.by_kind[self.kind] += (sum(send) - send[self.rank]) * row_bytes
        # Not every version of the libraries sends float8.
        numbers = [x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x for x in (received, x_N)]
        work = dist.all_to_all_single(*numbers, list(receive), list(send), self.group, async_op=not wait)
        return Pending(received, work, x_N)

    def exchange(self, x_N, send, receive):
        """`start` with a gradient; without gradients it returns before the data is there."""
        if torch.is_grad_enabled() and x_N.requires_grad:
            return Pending(_AllToAll.apply(x_N, send, receive, self))
        return self.start(x_N, send, receive)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_N, send, receive, channel):
        ctx.send, ctx.receive, ctx.channel = send, receive, channel
        return channel.start(x_N, send, receive, wait=True).wait()

    @staticmethod
    def backward(ctx, grad_N):
        return ctx.channel.start(grad_N, ctx.receive, ctx.send, wait=True).wait(), None, None, None


class _Gather(torch.autograd.Function):
    """Shards [n_r, ...] of all ranks, one after the other -> [sum(n), ...] on every rank.

    The gradient is the own slice of the incoming one, which is the same on all ranks.
    """

    @staticmethod
    def forward(ctx, x_N, lengths, channel):
        ctx.lengths, ctx.rank = lengths, channel.rank
        padded = x_N.new_zeros(max(lengths), *x_N.shape[1:])
        padded[: x_N.shape[0]] = x_N
        gathered = [torch.empty_like(padded) for _ in lengths]
        channel.traffic.by_kind[channel.kind] += (channel.size - 1) * padded.nbytes
        dist.all_gather(gathered, padded, channel.group)
        return torch.cat([shard[:length] for shard, length in zip(gathered, lengths, strict=True)])

    @staticmethod
    def backward(ctx, grad_N):
        start = sum(ctx.lengths[: ctx.rank])
        return grad_N[start : start + ctx.lengths[ctx.rank]].clone(), None, None


@dataclass(frozen=True)
class Part:
    """Consecutive tokens [start, stop) of this shard that one Ulysses exchange covers; `lengths` those of every rank
    of the group in its place.
    """

    start: int
    stop: int
    lengths: tuple


class ParallelSequence:
    """A shard of a video; methods as PackedSequence.

    Args:
        sparse_ratio: P. num_heads: H.
        mesh: Mesh of this process.
        exchange: "overlapped" starts the exchange of q, of k and of v as soon as each is projected, so that it runs
            beside the next projection; "fused" exchanges all three in one call.
        switch_dtype: what a switch between processes sends, see SWITCH_DTYPES.

    `traffic` counts what this process sends. Raises ValueError where the degrees do not divide, or for another
    exchange or dtype.
    """

    def __init__(self, sparse_ratio, num_heads, mesh, exchange="overlapped", switch_dtype=SWITCH_DTYPE):
        degrees = valid_degrees(mesh.size, sparse_ratio, num_heads)
        if (mesh.skiparse_parallel, mesh.ulysses_parallel) not in degrees:
            raise ValueError(f"{mesh.name} (SSP x Ulysses) does not divide sparse ratio {sparse_ratio} and {num_heads} "
                             f"heads; valid for {mesh.size} processes: {degrees or 'none'}")
        if exchange not in EXCHANGES:
            raise ValueError(f"exchange is {exchange!r}; valid: {', '.join(EXCHANGES)}")
        if switch_dtype not in SWITCH_DTYPES:
            raise ValueError(f"switch_dtype is {switch_dtype!r}; valid: {', '.join(SWITCH_DTYPES)}")
        self.sparse_ratio, self.mesh, self.exchange, self.switch_dtype = sparse_ratio, mesh, exchange, switch_dtype
        self.traffic = Traffic()
        self._switch = Channel(mesh.skiparse_group, self.traffic, "switch")
        self._sparse_heads = Channel(mesh.ulysses_group, self.traffic, "ulysses")
        self._full_heads = Channel(mesh.video_group, self.traffic, "ulysses")
        self._leave = Channel(mesh.video_group, self.traffic, "leave")
        self._cache = {}

    def order(self, grid, pattern, head_dim, device):
        """The Order of this shard."""

        def build():
            plan = self._plan(grid)
            natural = torch.from_numpy(plan.rank_tokens(pattern, self.mesh.s, self.mesh.u)).to(device)
            lengths = plan.rank_lengths(pattern, self.mesh.s, self.mesh.u)
            return Order(grid, pattern, runs_of(lengths), *rotary_tables(grid, head_dim, natural))

        return self._once(("order", grid, pattern, head_dim, str(device)), build)

    def enter(self, x_BNC, grid):
        """All tokens in natural order -> this shard in token order."""
        tokens = self._once(("enter", grid, str(x_BNC.device)), lambda: torch.from_numpy(
            self._plan(grid).rank_tokens("token", self.mesh.s, self.mesh.u)).to(x_BNC.device))
        return x_BNC.index_select(1, tokens)

    def switch(self, x_BNC, owed, kernels, grid, target):
        """The other pattern's shard -> the shard of `target`, one All-to-All among the ranks of equal u.

        Arguments and results as PackedSequence.switch.
        """
        send, receive, pack, unpack = self._switch_tables(grid, target, x_BNC.device)
        if self._switch.size == 1:
            gather_N = self._once(("local", grid, target, str(x_BNC.device)), lambda: pack[unpack])
            if owed is None and torch.is_grad_enabled():
                return x_BNC.index_select(1, gather_N), None, None
            return x_BNC, owed, gather_N
        payload = kernels.update_gather(x_BNC, *(owed or (None, None)), pack, self._payload_dtype(x_BNC.dtype))
        received = self._travel(payload.transpose(0, 1), send, receive).transpose(0, 1)
        if torch.is_grad_enabled():
            return received.index_select(1, unpack).to(x_BNC.dtype), None, None
        return received.contiguous(), None, unpack

    def _payload_dtype(self, dtype):
        rounded = {"fp16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.bfloat16}
        return rounded.get(self.switch_dtype, dtype)

    def _travel(self, x_NBC, send, receive):
        """The All-to-All of a switch; "e4m3" sends codes and a scale a token."""
        if self.switch_dtype != "e4m3":
            return self._switch.exchange(x_NBC, send, receive).wait()
        codes = quantised(x_NBC, "row")
        received = self._switch.start(codes.codes, send, receive).wait()
        scale = self._switch.start(codes.scale, send, receive).wait()
        return (received.float() * scale).to(x_NBC.dtype)

    def _switch_tables(self, grid, target, device):
        """(split sizes sent, received, gather before, gather after) of a switch to `target`."""

        def build():
            plan, mesh = self._plan(grid), self.mesh
            send, receive = plan.switch_splits(mesh.s, mesh.u)
            gathers = plan.switch_gathers(other_pattern(target), mesh.s, mesh.u)
            pack, unpack = (torch.from_numpy(gather).to(device) for gather in gathers)
            return (send, receive, pack, unpack) if target == "group" else (receive, send, pack, unpack)

        return self._once(("switch", grid, target, str(device)), build)

    def leave(self, x_BNC, grid, pattern):
        """Shards of `pattern` -> all tokens in natural order, on every process."""

        def build():
            tokens = [self._plan(grid).rank_tokens(pattern, *divmod(rank, self.mesh.ulysses_parallel))
                      for rank in range(self.mesh.size)]
            natural = torch.cat([torch.from_numpy(shard) for shard in tokens]).argsort()
            return [len(shard) for shard in tokens], natural.to(x_BNC.device)

        lengths, natural = self._once(("leave", grid, pattern, str(x_BNC.device)), build)
        return _Gather.apply(x_BNC.transpose(0, 1), lengths, self._leave).transpose(0, 1).index_select(1, natural)

    def common_mean(self, mean_BC, sparse):
        """The mean over all processes whose keys meet in an attention call; shards are near-equal."""
        channel = self._sparse_heads if sparse else self._full_heads
        if channel.size > 1:
            # A shard may be empty.
            mean_BC = mean_BC.nan_to_num()
            dist.all_reduce(mean_BC, group=channel.group)
            mean_BC = mean_BC / channel.size
        return mean_BC

    def own_heads(self, scales, sparse):
        """Of scales [H] those of the heads that attention sees here."""
        channel = self._sparse_heads if sparse else self._full_heads
        return tuple(scale.unflatten(0, (channel.size, -1))[channel.rank] for scale in scales)

    def share(self, x_BNHD, order, sparse):
        """Begins what attention needs of q, k or v from elsewhere; the result is an argument of attend_*."""
        channel, parts = self._parts(order, sparse)
        if channel.size == 1 or not parts or self.exchange == "fused":
            return x_BNHD
        return [_heads_to_tokens([x_BNHD], part, channel) for part in parts]

    def attend_full(self, attention, q, k, v, order):
        """Every token attends to every token of every shard."""
        return self._attend(attention, (q, k, v), order, sparse=False)

    def attend_sparse(self, attention, q, k, v, order):
        """Every token attends to its own sub-sequence."""
        return self._attend(attention, (q, k, v), order, sparse=True)

    def _attend(self, attention, shared, order, sparse):
        """What `share` returned of q, k and v -> parts [B, n, H, D]. Each is attended to while others travel."""
        channel, parts = self._parts(order, sparse)
        if channel.size == 1 or not parts:
            runs = order.runs if sparse else runs_of((shared[0].shape[1],))
            return attend_sub_sequences(attention, *shared, runs)
        if self.exchange == "fused":
            travelling = [(_heads_to_tokens(shared, part, channel),) for part in parts]
        else:
            travelling = list(zip(*shared, strict=True))
        returning = []
        for part, pending in zip(parts, travelling, strict=True):
            arrived = [x_BNhD for each in pending for x_BNhD in each.wait()]
            returning.append(_tokens_to_heads(attention(*arrived), part, channel))
        received = torch.cat([pending.wait() for pending in returning], dim=1)
        heads, width = arrived[0].shape[2:]
        return (received.reshape(*received.shape[:2], heads * channel.size, width),)

    def _parts(self, order, sparse):
        """(channel, Parts): sub-sequences that are not empty everywhere in a sparse block, else the whole shard."""
        channel = self._sparse_heads if sparse else self._full_heads
        return channel, self._once(("parts", order.grid, order.pattern, sparse), lambda: self._build_parts(
            order.grid, order.pattern, sparse))

    def _build_parts(self, grid, pattern, sparse):
        plan, mesh = self._plan(grid), self.mesh
        if not sparse:
            owners = (divmod(rank, mesh.ulysses_parallel) for rank in range(mesh.size))
            lengths = tuple(len(plan.rank_tokens(pattern, s, u)) for s, u in owners)
            return (Part(0, lengths[mesh.rank], lengths),)
        per_rank = [plan.rank_lengths(pattern, mesh.s, u) for u in range(mesh.ulysses_parallel)]
        parts, start = [], 0
        for lengths in zip(*per_rank, strict=True):
            if sum(lengths):
                parts.append(Part(start, start + lengths[mesh.u], lengths))
            start += lengths[mesh.u]
        return tuple(parts)

    def _plan(self, grid):
        return self._once(("plan", grid), lambda: SkiparsePlan(
            grid, self.sparse_ratio, self.mesh.skiparse_parallel, self.mesh.ulysses_parallel))

    def _once(self, key, build):
        """Tables are kept outside inference mode, so that those built by a generation also serve training."""
        if key not in self._cache:
            with torch.inference_mode(False):
                self._cache[key] = build()
        return self._cache[key]


def _heads_to_tokens(tensors, part, channel):
    """This rank's [B, N, H, D], K of them -> all tokens of the part with H/R heads: Pending of K [B, N, h, D].

    Tokens stand rank by rank: attention inside a part does not care.
    """
    own, ranks, dtype = part.stop - part.start, channel.size, tensors[0].dtype
    if dtype == torch.float8_e4m3fn:
        tensors = [x_BNHD.view(torch.uint8) for x_BNHD in tensors]
    by_rank = [x_BNHD[:, part.start : part.stop].unflatten(2, (ranks, -1)).permute(2, 1, 0, 3, 4) for x_BNHD in tensors]
    pending = channel.exchange(torch.stack(by_rank, dim=3).flatten(0, 1), [own] * ranks, part.lengths)
    if dtype == torch.float8_e4m3fn:
        return pending.seen_as(lambda x_NBKhD: x_NBKhD.view(dtype).transpose(0, 1).unbind(2))
    return pending.seen_as(lambda x_NBKhD: x_NBKhD.transpose(0, 1).unbind(2))


def _tokens_to_heads(x_BNhD, part, channel):
    """All tokens of the part with H/R heads -> this rank's tokens with all heads: Pending [B, n, R, h * D]."""
    own, ranks = part.lengths[channel.rank], channel.size
    pending = channel.exchange(x_BNhD.transpose(0, 1), part.lengths, [own] * ranks)
    return pending.seen_as(lambda x_NBhD: x_NBhD.flatten(2).unflatten(0, (ranks, own)).permute(2, 1, 0, 3))
