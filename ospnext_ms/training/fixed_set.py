"""The loss on a fixed set of clips, noise and noise levels: comparable between steps, runs and models."""

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ospnext_ms.kernels.collectives import AllGather
from ospnext_ms.training.inputs import FixedInputs


class FixedSet:
    """The loss on FixedInputs, whose clips the data ranks share.

    Args:
        section: EvalDatasetSection. flow: FlowSection. dit: DiTConfig. mesh: parallel.mesh.Mesh.
        encode: needed where the cache holds videos.

    Raises:
        FileNotFoundError, ValueError: see FixedInputs.
    """

    def __init__(self, section, flow, dit, mesh, encode=None):
        self.inputs = FixedInputs(section, flow, dit, encode)
        self.mesh = mesh
        self._gather = AllGather(mesh.world_group)

    def mean_loss(self, loss):
        """Mean over the set of `loss`, a callable from the inputs to a scalar tensor. All processes have to call it."""
        mine = range(self.mesh.data_rank, len(self.inputs), self.mesh.data_size)
        losses = [float(loss(*map(Tensor, self.inputs(clip)))) for clip in mine]
        if self.mesh.size == 1:
            return float(np.mean(losses))
        table = Tensor(np.array([[sum(losses), len(losses)]]), ms.float32)
        total, count = self._gather(table, "evaluation").asnumpy().astype(np.float64).sum(0)
        return float(total / count)
