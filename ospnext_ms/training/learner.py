"""What changes weights, put together once for both kinds of training: schedule, optimiser, average, clipper."""

from ospnext_ms.training.clipping import AdaptiveClipper
from ospnext_ms.training.ema import Ema
from ospnext_ms.training.optimizer import make_optimizer, make_schedule, set_learning_rate
from ospnext_ms.training.state import TrainState
from ospnext_ms.training.step import TrainStep


class Learner:
    """Gradients of a loss and the updates from them.

    Args:
        config: TrainConfig or PostTrainConfig, of which the sections optimizer, lr_schedule, clipping and ema are used.
        parameters: {name in the network: Parameter} of what is trained. loss: Cell, see TrainStep.
        total: steps (or iterations) of the schedule. runtime: runtime.Runtime. mesh: parallel.mesh.Mesh.
        sharded: ShardedWeights of the network.

    Attributes: ema; state, what a checkpoint has to carry; clipper.
    """

    def __init__(self, config, parameters, loss, total, runtime, mesh, sharded):
        section, clipping = config.optimizer, config.clipping
        self._rate_of = make_schedule(config.lr_schedule, total)
        self._optimizer = make_optimizer(parameters.values(), betas=section.betas, eps=section.eps,
                                         weight_decay=section.weight_decay)
        names = {id(parameter): name for name, parameter in parameters.items()}
        names = [names[id(parameter)] for parameter in self._optimizer.parameters]
        self.ema = Ema(self._optimizer.parameters, config.ema.decay, config.ema.warm_up)
        self.clipper = AdaptiveClipper(clipping.decay, clipping.deviations, clipping.start)
        self.state = TrainState(names, self._optimizer, self.ema, self.clipper, sharded, mesh)
        self._step = TrainStep(loss, self._optimizer, self.ema, runtime, mesh, sharded)

    def gradients(self, micro_batches, asked=0, end=lambda part: None):
        """See TrainStep.gradients."""
        return self._step.gradients(micro_batches, asked, end)

    def update(self, gradients, place, update):
        """Changes weights, moments and averages; {"clip_factor", "clip_threshold", "learning_rate"} of it.

        `place`: position in the learning-rate schedule. `update`: number of the update. Both counted from 0.

        Raises:
            FloatingPointError: loss or gradient is not finite on some rank; nothing is changed then.
        """
        if gradients.bad_ranks:
            raise FloatingPointError(f"loss or gradient is not finite on rank "
                                     f"{', '.join(map(str, gradients.bad_ranks))} (loss {gradients.loss}); no weight "
                                     "was changed, and the checkpoints are those of earlier steps")
        factor, rate = self.clipper(gradients.norm), self._rate_of(place)
        set_learning_rate(self._optimizer, rate)
        self._step.update(gradients, factor, update)
        return {"clip_factor": factor, "clip_threshold": self.clipper.threshold, "learning_rate": rate}
