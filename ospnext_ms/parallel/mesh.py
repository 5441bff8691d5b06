"""The processes of a run as a mesh data x skiparse x ulysses. Passed to whoever needs it; there is no global one.

World rank = (data_rank * S + s) * U + u, so the ranks that share a video are neighbours (of one host, where S * U fits
on it), and among them those that share its sub-sequences, which communicate most.
"""

from dataclasses import dataclass, field

from ospnext_ms.kernels.collectives import ProcessGroup, Traffic
from ospnext_ms.parallel.degrees import layout, world_size


@dataclass(frozen=True)
class Mesh:
    """Position of this process and the groups it communicates in.

    Args:
        rank, size: in the world.
        skiparse, ulysses: S and U, the degrees.
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
        """True on the one rank of those that share a video that writes for them."""
        return self.video_group.index == 0

    @property
    def reports(self):
        """True on the one rank of the run that prints, and writes what the run has one of."""
        return self.rank == 0


def start_processes(section):
    """Joins the processes that msrun started and returns this process's Mesh. Called once, before any operator runs.

    `section`: a ParallelSection that parallel.degrees.check_parallel has passed.
    """
    if world_size() == 1:
        return Mesh.single()
    from mindspore.communication import init

    init()
    return make_mesh(section)


def make_mesh(section):
    """Mesh of a checked ParallelSection, once the processes have joined; makes those groups that there are not yet."""
    from mindspore.communication import get_group_size, get_rank

    rank, size = get_rank(), get_group_size()
    groups = layout(size, section.skiparse_parallel, section.ulysses_parallel, section.parameter_shard, rank)
    traffic = Traffic()
    made = {ranks: make_group(ranks, rank, traffic) for ranks in groups.values()}
    members = {f"{kind}_group": made[ranks] for kind, ranks in groups.items()}
    return Mesh(rank=rank, size=size, skiparse=section.skiparse_parallel, ulysses=section.ulysses_parallel,
                traffic=traffic, **members)


def make_group(ranks, rank, traffic):
    """ProcessGroup of world ranks, `rank` being this process's; all of them have to call this."""
    from mindspore.communication import GlobalComm, create_group, get_group_size

    name = None
    if len(ranks) == get_group_size():
        name = GlobalComm.WORLD_COMM_GROUP
    elif len(ranks) > 1:
        name = "ospnext_" + "_".join(map(str, ranks))
        create_group(name, list(ranks))
    return ProcessGroup(ranks, ranks.index(rank), name, traffic)
