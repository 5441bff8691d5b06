"""Which of a run's processes make which videos.

Prompts are spread over lanes. A lane is the S x U processes that share a video, or with split guidance two such groups:
one computes the conditional velocity, the other the unconditional one. Every process of a lane ends a step with the
same latents; only the lane's leader writes.
"""

from dataclasses import dataclass

from ospnext_ms.diffusion.integrate import both_velocities
from ospnext_ms.kernels.collectives import AllGather, ProcessGroup
from ospnext_ms.parallel.mesh import Mesh, make_group, start_processes


@dataclass(frozen=True)
class Team:
    """This process among those of the run.

    Args:
        mesh: parallel.mesh.Mesh; its data axis counts groups that share a video.
        guidance_group: the two processes with equal tokens of a lane's conditional and unconditional branch; a group
            of one where guidance is not split.
    """

    mesh: Mesh = Mesh()
    guidance_group: ProcessGroup = ProcessGroup()

    @property
    def lanes(self):
        """Number of videos (or batches) in work at once."""
        return self.mesh.data_size // self.guidance_group.size

    @property
    def lane(self):
        """The lane of this process."""
        return self.mesh.data_rank // self.guidance_group.size

    @property
    def is_leader(self):
        """True for the one process of its lane that writes."""
        return self.mesh.is_leader and self.guidance_group.index == 0

    def decodes(self, tiled):
        """True where this process decodes videos: with tiles all of the leader's branch, else the leader."""
        return self.guidance_group.index == 0 if tiled else self.is_leader

    def velocities(self):
        """Function that computes both branches of guidance, see `both_velocities`."""
        return SplitVelocities(self.guidance_group) if self.guidance_group.size > 1 else both_velocities


def join(section):
    """Joins the processes that msrun started; returns this process's Team. `section`: a GenerateParallelSection that
    parallel.degrees.check_generation has passed."""
    return make_team(section, start_processes(section))


def make_team(section, mesh):
    """Team of a checked GenerateParallelSection and its mesh."""
    if not section.split_guidance:
        return Team(mesh)
    degree = mesh.video_group.size
    first = mesh.data_rank // 2 * 2 * degree + mesh.video_group.index
    return Team(mesh, make_group((first, first + degree), mesh.rank, mesh.traffic))


class SplitVelocities:
    """As both_velocities, but each of the two processes of a group computes one of them."""

    def __init__(self, group):
        self._branch = group.index
        self._gather = AllGather(group)

    def __call__(self, velocity, sample, t_B, text, negative):
        own = velocity(sample, t_B, (text, negative)[self._branch])
        both = self._gather(own.expand_dims(0), "guidance")
        return both[0], both[1]


class SpreadTiles:
    """As the builtin `map`, but the processes of a group compute the results in turn; all of them get all results."""

    def __init__(self, group):
        self._group = group
        self._gather = AllGather(group)

    def __call__(self, function, tiles):
        tiles = list(tiles)
        for first in range(0, len(tiles), self._group.size):
            # In the last round a process without a tile of its own repeats the last one.
            own = function(tiles[min(first + self._group.index, len(tiles) - 1)])
            results = self._gather(own.expand_dims(0), "tiles")
            yield from (results[i] for i in range(min(self._group.size, len(tiles) - first)))
