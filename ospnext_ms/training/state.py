"""Everything a training run has to carry over a stop, to and from a checkpoint."""

import math

from ospnext_ms.storage.training_checkpoint import Piece
from ospnext_ms.storage.weights import set_tensors

PARAMETERS, EMA, MOMENTS, SQUARES = "parameters", "ema", "adam_m", "adam_v"


class TrainState:
    """Weights, their average and the optimiser's moments under the network's own names, and the clipper.

    Args:
        names: of `optimizer.parameters`, in their order. optimizer: optimizer.ChunkedAdamW. ema: Ema over the
            same parameters. clipper: AdaptiveClipper. sharded: ShardedWeights. mesh: parallel.mesh.Mesh.
    """

    def __init__(self, names, optimizer, ema, clipper, sharded, mesh):
        self.names = list(names)
        self.optimizer = optimizer
        self.clipper = clipper
        self.sharded = sharded
        self.mesh = mesh
        lists = {PARAMETERS: optimizer.parameters, EMA: ema.averages, MOMENTS: optimizer.exp_avg,
                 SQUARES: optimizer.exp_avg_sq}
        self.groups = {group: dict(zip(self.names, values, strict=True)) for group, values in lists.items()}

    @property
    def writes(self):
        """True where this process has a part of a checkpoint to write."""
        return self.mesh.replica_group.index == 0

    @property
    def nbytes(self):
        """Bytes of the tensors of a checkpoint, of all processes together."""
        return sum(math.prod(self.sharded.shape(name, parameter.shape)) * parameter.itemsize
                   for parameters in self.groups.values() for name, parameter in parameters.items())

    def copy_to_host(self):
        """{group: {name: array or Piece}} of what this process has to write, copied, so that training can go on."""
        first = self.mesh.shard_group.index == 0
        return {group: {name: self._copy(name, parameter) for name, parameter in parameters.items()
                        if first or self.sharded.holds(self.groups[PARAMETERS][name])}
                for group, parameters in self.groups.items()}

    def restore(self, checkpoint):
        """Takes over everything from an opened Checkpoint, whatever number of processes wrote it.

        Raises:
            ValueError: it belongs to another model.
        """
        for group, parameters in self.groups.items():
            if group not in checkpoint.groups:
                raise ValueError(f"{checkpoint.path} has no tensors called {group}; it has "
                                 f"{', '.join(sorted(checkpoint.groups))}")
            stored = {_in_todays_words(name): tensor for name, tensor in checkpoint.groups[group].items()}
            set_tensors(parameters, stored, f"{checkpoint.path}/{group}", self.sharded)
        self.optimizer.restore_steps(checkpoint.state["optimizer_step"])
        self.clipper.restore(checkpoint.state["clipper"])

    def json_state(self):
        """What is not a tensor, as JSON values."""
        return {"optimizer_step": self.optimizer.steps, "clipper": self.clipper.state()}

    def _copy(self, name, parameter):
        array = parameter.asnumpy()
        if self.sharded.group.size == 1:
            return array.copy()
        values = self.sharded.values(name, array).copy()
        return Piece(values, self.sharded.shape(name, array.shape), self.sharded.start(name))


def _in_todays_words(name):
    """A stored name; those of post-training's adapters once told what the network was wrapped in."""
    return name.removeprefix("step_log_prob.velocity.net.").replace(".adapter.lora_", ".lora_")
