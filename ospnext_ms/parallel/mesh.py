"""The processes of a run as a mesh data x skiparse x ulysses. Passed to whoever needs it; there is no global one.

World rank = (data_rank * S + s) * U + u, so the ranks that share a video are neighbours (of one host, where S * U fits
on it), and among them those that share its sub-sequences, which communicate most.
"""

import os
from dataclasses import dataclass, field

from ospnext_ms.kernels.collectives import ProcessGroup, Traffic


@dataclass(frozen=True)
class Mesh:
    """Position of this process and the groups it communicates in.

    Args:
        rank, size: in the world.
        skiparse, ulysses: S and U, the degrees.
        data_group: ranks with the same part of different videos.
        video_group: the S*U ranks that share a video, at index s*U + u.
        skiparse_group: ranks of equal u in it. ulysses_group: ranks of equal s in it.
        shard_group: ranks over which parameters are sharded. replica_group: ranks that hold the same shard.
        world_group: all ranks.
        traffic: payload sent by this rank in any of the groups.
    """

    rank: int = 0
    size: int = 1
    skiparse: int = 1
    ulysses: int = 1
    data_group: ProcessGroup = ProcessGroup()
    video_group: ProcessGroup = ProcessGroup()
    skiparse_group: ProcessGroup = ProcessGroup()
    ulysses_group: ProcessGroup = ProcessGroup()
    shard_group: ProcessGroup = ProcessGroup()
    replica_group: ProcessGroup = ProcessGroup()
    world_group: ProcessGroup = ProcessGroup()
    traffic: Traffic = field(default_factory=Traffic, compare=False, repr=False)

    @classmethod
    def single(cls):
        """The mesh of one process."""
        return cls()

    @property
    def s(self):
        """Skiparse rank: which sub-sequences are this rank's."""
        return self.video_group.index // self.ulysses

    @property
    def u(self):
        """Ulysses rank: which tokens of them are this rank's."""
        return self.video_group.index % self.ulysses

    @property
    def data_rank(self):
        """Which videos are this rank's; equal on all ranks that share a video."""
        return self.rank // (self.skiparse * self.ulysses)

    @property
    def data_size(self):
        """Number of videos (or batches) in work at once."""
        return self.size // (self.skiparse * self.ulysses)

    @property
    def is_leader(self):
        """True on the one rank of those that share a video that speaks and writes for them."""
        return self.video_group.index == 0


def layout(size, skiparse, ulysses, shard, rank):
    """World ranks of the groups of `rank`: {"world", "data", "video", "skiparse", "ulysses", "shard", "replica"}."""
    degree = skiparse * ulysses
    first = rank // degree * degree
    s, u = rank % degree // ulysses, rank % ulysses
    first_shard = rank // shard * shard
    return {
        "world": tuple(range(size)),
        "data": tuple(range(rank % degree, size, degree)),
        "video": tuple(range(first, first + degree)),
        "skiparse": tuple(range(first + u, first + degree, ulysses)),
        "ulysses": tuple(range(first + s * ulysses, first + (s + 1) * ulysses)),
        "shard": tuple(range(first_shard, first_shard + shard)),
        "replica": tuple(range(rank % shard, size, shard)),
    }


def world_size():
    """Number of processes that msrun started, 1 without msrun."""
    return int(os.environ.get("MS_WORKER_NUM", "1"))


def check_parallel(section, config, size):
    """Checks a ParallelSection against the transformer (DiTConfig) and the number of processes; needs no MindSpore.

    Raises:
        ValueError: a degree that is not valid, with those that are; a world size that is not their product.
    """
    skiparse, ulysses = section.skiparse_parallel, section.ulysses_parallel
    valid = _divisors(config.sparse_ratio**2)
    if skiparse not in valid:
        raise ValueError(f"parallel_config.skiparse_parallel is {skiparse}; "
                         f"valid for sparse_ratio {config.sparse_ratio}: {valid}")
    heads = config.num_heads
    if heads % (skiparse * ulysses):
        pairs = [f"{s}x{u}" for s in valid for u in _divisors(heads) if heads % (s * u) == 0]
        raise ValueError(f"parallel_config: skiparse_parallel x ulysses_parallel is {skiparse}x{ulysses}, and "
                         f"{skiparse * ulysses} does not divide the {heads} heads; valid: {', '.join(pairs)}")
    degree = skiparse * ulysses
    data = section.data_parallel
    if size % degree or (data is not None and data * degree != size):
        wanted = f"a multiple of {degree}" if data is None else f"{data} x {degree} = {data * degree}"
        raise ValueError(f"{size} processes run, but parallel_config (data_parallel {data}, skiparse_parallel "
                         f"{skiparse}, ulysses_parallel {ulysses}) needs {wanted}; start them with "
                         "msrun --worker_num, or change the degrees")
    if size % section.parameter_shard:
        raise ValueError(f"parallel_config.parameter_shard is {section.parameter_shard}; valid for {size} processes: "
                         f"{_divisors(size)}")


def start_processes(section, config):
    """Joins the processes that msrun started and returns this process's Mesh. Called once, before any operator runs.

    Args:
        section: ParallelSection. config: DiTConfig.

    Raises:
        ValueError: degrees that do not fit (see check_parallel).
    """
    check_parallel(section, config, world_size())
    if world_size() == 1:
        return Mesh.single()
    from mindspore.communication import GlobalComm, create_group, get_group_size, get_rank, init

    init()
    rank, size = get_rank(), get_group_size()
    groups = layout(size, section.skiparse_parallel, section.ulysses_parallel, section.parameter_shard, rank)
    names, traffic, members = {groups["world"]: GlobalComm.WORLD_COMM_GROUP}, Traffic(), {}
    for kind, ranks in groups.items():
        if len(ranks) > 1 and ranks not in names:
            names[ranks] = "ospnext_" + "_".join(map(str, ranks))
            create_group(names[ranks], list(ranks))
        members[f"{kind}_group"] = ProcessGroup(ranks, ranks.index(rank), names.get(ranks), traffic)
    return Mesh(rank=rank, size=size, skiparse=section.skiparse_parallel, ulysses=section.ulysses_parallel,
                traffic=traffic, **members)


def _divisors(n):
    return [i for i in range(1, n + 1) if n % i == 0]
