"""One training step in three compiled parts: gradients, their reduction over the processes, the update.

Between the parts stands the host, which looks at the norm before anything is changed.
"""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops


class _Accumulate(nn.Cell):
    def construct(self, sums, gradients):
        added = ()
        for total, gradient in zip(sums, gradients):  # noqa: B905  (strict is no graph syntax)
            added += (total + gradient,)
        return added


class _SquaredNorms(nn.Cell):
    """Sum of squares of each of a tuple of tensors: fp32 [number of tensors]."""

    def construct(self, tensors):
        sums = ()
        for tensor in tensors:
            # All axes at once: over one long axis the CPU's sum loses digits.
            sums += (ops.square(tensor.astype(ms.float32)).sum(),)
        return ops.stack(sums)


class _Update(nn.Cell):
    """Scales the gradients, lets the optimiser use them, then takes the new weights into the average."""

    def __init__(self, optimizer, ema):
        super().__init__()
        self.optimizer = optimizer
        self.ema = ema

    def construct(self, gradients, scale, ema_share):
        scaled = ()
        for gradient in gradients:
            scaled += (gradient * scale,)
        done = self.optimizer(scaled)
        return ops.depend(self.ema(ops.depend(ema_share, done)), done)


@dataclass(frozen=True)
class Gradients:
    """What a step learned before it changed anything.

    loss: mean over this process's samples. values: one tensor a parameter, in the optimiser's order. squared_norms:
    NumPy float64, one a parameter.
    """

    loss: float
    values: tuple
    squared_norms: np.ndarray

    @property
    def is_finite(self):
        """True where loss and every gradient are finite numbers."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.squared_norms).all())

    @property
    def norm(self):
        """Norm over all parameters."""
        return float(np.sqrt(self.squared_norms.sum()))


class TrainStep:
    """Gradients of a loss and the update from them. Compiles once for each set of input shapes.

    Args:
        loss: Cell from a step's inputs to a scalar. optimizer: see optimizer.make_optimizer. ema: Ema.
        runtime: pipelines.runtime.Runtime.
    """

    def __init__(self, loss, optimizer, ema, runtime):
        self.optimizer = optimizer
        self.ema = ema
        # Built outside the compiled function: inside, it would be built, and the whole compiled, anew at every step.
        value_and_grad = ms.value_and_grad(loss, None, optimizer.parameters)
        self._value_and_grad = ms.jit(value_and_grad) if runtime.compiled else value_and_grad
        self._accumulate = runtime.compile(_Accumulate())
        self._squared_norms = runtime.compile(_SquaredNorms())
        self._update = runtime.compile(_Update(optimizer, ema))

    def gradients(self, micro_batches):
        """Mean loss and gradient of several batches (tuples of the loss's inputs as NumPy arrays) of equal size."""
        total, losses = None, []
        for batch in micro_batches:
            loss, values = self._value_and_grad(*map(Tensor, batch))
            losses.append(loss)
            total = values if total is None else self._accumulate(total, values)
        # Kept as sums: the update multiplies by a scale anyhow.
        loss = float(np.mean([float(loss) for loss in losses]))
        squares = self._squared_norms(total).asnumpy().astype(np.float64) / len(losses) ** 2
        return Gradients(loss, total, squares)

    def update(self, gradients, scale, step):
        """Changes weights, moments and averages: gradients multiplied by `scale`; `step` counted from 0."""
        self._update(gradients.values, Tensor(scale, ms.float32), Tensor(self.ema.share(step), ms.float32))
