"""Who does what among processes, from their ranks alone."""

import numpy as np
import pytest
from mindspore import Tensor

from ospnext_ms.generation.team import SplitVelocities, SpreadTiles, Team
from ospnext_ms.kernels.collectives import ProcessGroup
from ospnext_ms.parallel.mesh import Mesh


def team(rank, size, degree, split):
    """Team of a rank among `size`, `degree` of which share a video."""
    mesh = Mesh(rank=rank, size=size, skiparse=degree, video_group=ProcessGroup(tuple(range(degree)), rank % degree))
    if not split:
        return Team(mesh)
    return Team(mesh, ProcessGroup((0, degree), rank // degree % 2))


@pytest.mark.parametrize(("size", "degree", "split", "lanes", "leaders"), [
    (1, 1, False, 1, [0]),
    (4, 1, False, 4, [0, 1, 2, 3]),
    (4, 2, False, 2, [0, 2]),
    (4, 1, True, 2, [0, 2]),
    (8, 2, True, 2, [0, 4]),
])
def test_each_lane_has_one_leader(size, degree, split, lanes, leaders):
    teams = [team(rank, size, degree, split) for rank in range(size)]
    assert {member.lanes for member in teams} == {lanes}
    assert [member.lane for member in teams] == [rank * lanes // size for rank in range(size)]
    assert [rank for rank, member in enumerate(teams) if member.is_leader] == leaders


def test_tiles_are_decoded_by_all_that_share_the_leaders_branch():
    teams = [team(rank, 8, 2, True) for rank in range(8)]
    assert [member.decodes(tiled=True) for member in teams] == [True, True, False, False] * 2
    assert [member.decodes(tiled=False) for member in teams] == [member.is_leader for member in teams]


class OfEveryRank:
    """Stands in for AllGather: what every rank of the group would have given, by its own function of the rank."""

    def __init__(self, values):
        self.values = values

    def __call__(self, own, label):
        assert any((own.asnumpy()[0] == value).all() for value in self.values)
        return Tensor(np.stack(self.values))


def test_each_process_of_a_pair_computes_one_branch():
    branches = {"text": np.full((1, 2), 3, np.float32), "negative": np.full((1, 2), 5, np.float32)}
    for index, name in enumerate(branches):
        calls = []

        def velocity(x, t_B, text, calls=calls):
            calls.append(text)
            return Tensor(branches[text])

        split = SplitVelocities(ProcessGroup(index=index))
        split._gather = OfEveryRank(list(branches.values()))
        both = split(velocity, None, None, "text", "negative")
        assert calls == [name]
        assert [velocity.asnumpy().tolist() for velocity in both] == [[[3, 3]], [[5, 5]]]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("index", [0, 1])
def test_tiles_go_round_among_the_processes(count, index):
    computed, rounds = [], iter([(0, 1), (2, 3)])

    def double(tile):
        computed.append(tile)
        return Tensor(np.float32([2 * tile]))

    class Gather:
        def __call__(self, own, label):
            return [Tensor(np.float32([2 * min(tile, count - 1)])) for tile in next(rounds)]

    spread = SpreadTiles(ProcessGroup())
    spread._group, spread._gather = ProcessGroup((0, 1), index), Gather()
    results = [float(result.asnumpy()[0]) for result in spread(double, range(count))]
    assert results == [2.0 * tile for tile in range(count)]
    assert computed == [min(first + index, count - 1) for first in range(0, count, 2)]
