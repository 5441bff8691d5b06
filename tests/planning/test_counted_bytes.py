"""Planned bytes against what the sequence-parallel code asks its exchanges to send."""

from collections import Counter

import mindspore as ms
import pytest
from mindspore import Tensor, nn, ops

from ospnext_ms.kernels.collectives import ProcessGroup
from ospnext_ms.models.config import DiTConfig
from ospnext_ms.models.dit import OSPNextDiT
from ospnext_ms.parallel import ssp
from ospnext_ms.parallel.degrees import layout
from ospnext_ms.parallel.mesh import Mesh
from ospnext_ms.planning import communication
from tests.support.workload import workload

CONFIG = DiTConfig(16, 16, 4, 8, 8, 8, 4, num_full_blocks=4)


class CountedExchange(nn.Cell):
    """Stands in for an exchange between processes: counts what it is asked to send and returns zeros."""

    sent = Counter()

    def __init__(self, group):
        super().__init__()
        self.group = group

    def construct(self, x, counts, label):
        if self.group.size == 1:
            return x
        index, width = self.group.index, x.shape[1]
        if isinstance(counts[0], int):
            self.sent[label] += (self.group.size - 1) * counts[index] * width * 4
            return ops.zeros((sum(counts), width), x.dtype)
        self.sent[label] += (sum(counts[index]) - counts[index][index]) * width * 4
        return ops.zeros((max(1, sum(row[index] for row in counts)), width), x.dtype)


def mesh(rank, skiparse, ulysses):
    size = skiparse * ulysses
    groups = layout(size, skiparse, ulysses, 1, rank)
    members = {f"{kind}_group": ProcessGroup(ranks, ranks.index(rank)) for kind, ranks in groups.items()}
    return Mesh(rank=rank, size=size, skiparse=skiparse, ulysses=ulysses, **members)


@pytest.mark.parametrize(("video", "skiparse", "ulysses"), [((80, 112, 5), 2, 2), ((80, 112, 1), 4, 1),
                                                           ((64, 64, 1), 1, 2)])
def test_what_the_network_sends(monkeypatch, video, skiparse, ulysses):
    for name in ("AllToAll", "GatherShared"):
        monkeypatch.setattr(ssp, name, CountedExchange)
    ranks = []
    for rank in range(skiparse * ulysses):
        CountedExchange.sent.clear()
        sequence = ssp.ParallelSequence(2, CONFIG.num_heads, mesh(rank, skiparse, ulysses))
        net = OSPNextDiT(CONFIG, sequence=sequence)
        latent = ops.zeros((1, 16, (video[2] + 3) // 4, video[0] // 8, video[1] // 8))
        net(latent, Tensor([1.0], ms.float32), ops.zeros((1, 4, 8)))
        ranks.append(dict(CountedExchange.sent))
    most, mean = communication.video_bytes(workload(CONFIG, video, skiparse, ulysses))
    for label in most:
        counted = [rank.get(label, 0) for rank in ranks]
        assert most[label] == max(counted)
        assert mean[label] == pytest.approx(sum(counted) / len(counted))
