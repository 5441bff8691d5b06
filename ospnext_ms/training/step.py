"""One training step in three stages: gradients, their sum over the processes, the update.

Between the stages stands the host, which looks at loss and norm before anything is changed. What is done to every
parameter alike is done for some parameters at a time (see chunks.py), compiled but on Ascend.
"""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ospnext_ms.kernels.collectives import AllGather
from ospnext_ms.kernels.device import on_ascend
from ospnext_ms.parallel.gradients import GradientReducer
from ospnext_ms.training.chunks import CHUNK_SIZE, in_chunks


class _Accumulate(nn.Cell):
    def __init__(self):
        super().__init__()
        self.map = ops.HyperMap()

    def construct(self, sums, gradients):
        return self.map(_add, sums, gradients)


class _SquaredNorms(nn.Cell):
    """Sum of squares of each of a tuple of tensors: fp32 [number of tensors]."""

    def __init__(self):
        super().__init__()
        self.map = ops.HyperMap()

    def construct(self, tensors):
        return ops.cat(self.map(_squared_norm, tensors))


class _Update(nn.Cell):
    """Scales the gradients, lets the optimiser use them, then takes the new weights into the average."""

    def __init__(self, optimizer, average):
        super().__init__()
        self.optimizer = optimizer
        self.average = average
        self.map = ops.HyperMap()

    def construct(self, gradients, scale, ema_share):
        done = self.optimizer(self.map(ops.partial(_multiply, scale), gradients))
        return self.average(ops.depend(ema_share, done))


class _FusedUpdate(_Update):
    """The same with a FusedAdamW, which scales the gradients itself."""

    def construct(self, gradients, scale, ema_share):
        return self.average(ops.depend(ema_share, self.optimizer(gradients, scale)))


def _as_it_is(cell):
    return cell


def _add(a, b):
    return a + b


def _multiply(scale, gradient):
    return gradient * scale


def _squared_norm(tensor):
    # All axes at once: over one long axis the CPU's sum loses digits.
    return ops.square(tensor.astype(ms.float32)).sum().reshape(1)


@dataclass(frozen=True)
class Gradients:
    """What a step learned before it changed anything; equal on all processes but for `values`.

    loss: mean over all processes' samples. norm: of the whole mean gradient. bad_ranks: those where something was not
    a finite number, to be asked before anything else. values: one tensor a parameter, in the optimiser's order, to be
    multiplied by `scale`. auxiliaries: what the loss returned beside its value, one array [batches, ...] for each; of
    this process alone. asked: number of the signal that asks some process for an end, 0 for none.
    """

    loss: float
    norm: float
    bad_ranks: tuple
    values: tuple
    scale: float
    auxiliaries: tuple = ()
    asked: int = 0


class TrainStep:
    """Gradients of a loss and the update from them. Compiles once for each set of input shapes.

    Args:
        loss: Cell from a step's inputs to a scalar, or to a tuple of it and of tensors without gradient.
        optimizer: optimizer.ChunkedAdamW. ema: Ema of its parameters.
        runtime: runtime.Runtime. mesh: parallel.mesh.Mesh. sharded: ShardedWeights of the network.
    """

    def __init__(self, loss, optimizer, ema, runtime, mesh, sharded):
        self.optimizer = optimizer
        self.ema = ema
        self.sharded = sharded
        self._is_whole = np.array([not sharded.holds(parameter) for parameter in optimizer.parameters])
        # Built outside the compiled function: inside, it would be built, and the whole compiled, anew at every step.
        value_and_grad = ms.value_and_grad(loss, None, optimizer.parameters)
        self._value_and_grad = ms.jit(value_and_grad) if runtime.compiled else value_and_grad
        # Uncompiled, what is done to every parameter alike is a few thousand launches a step, milliseconds on Ascend,
        # where compiling it takes minutes. On CPU it is the other way round.
        compile_chunk = _as_it_is if on_ascend() else runtime.compile
        self._accumulate_chunk = compile_chunk(_Accumulate())
        self._squared_norms_of_chunk = compile_chunk(_SquaredNorms())
        pairs = zip(optimizer.chunks, ema.chunks, strict=True)
        make_update = _FusedUpdate if on_ascend() else _Update
        self._update_chunks = [compile_chunk(make_update(*pair)) for pair in pairs]
        self._gather = AllGather(mesh.world_group)
        self._reduce = None
        if mesh.size > 1:
            self._reduce = GradientReducer(optimizer.parameters, mesh, sharded)

    def gradients(self, micro_batches, asked=0, end=lambda part: None):
        """Mean loss and gradient over several batches of equal size and over all processes.

        `micro_batches`: tuples of the loss's inputs as NumPy arrays. `asked`: see Gradients, of this process.
        `end`: told where the parts "gradients", "reduction" and "waiting" (for the other processes) end.
        """
        total, losses, others = None, [], []
        for batch in micro_batches:
            outputs, values = self._value_and_grad(*map(Tensor, batch))
            loss, *auxiliaries = outputs if isinstance(outputs, tuple) else (outputs,)
            losses.append(loss)
            others.append(auxiliaries)
            if total is None:
                total = list(values)
            else:
                self._accumulate(total, values)
            # Held any longer it would lie beside the next batch's, and beside the sums over the processes.
            del values
        loss = np.mean([float(loss) for loss in losses])
        squares = self._squared_norms(total).astype(np.float64)
        # A sharded weight's gradient is a sum over processes already, so it cannot tell where a NaN came from.
        is_finite = np.isfinite(loss) and np.isfinite(squares[self._is_whole]).all()
        end("gradients")
        if self._reduce is not None:
            self._reduce(total)
            squares = self.sharded.total_squares(self.optimizer.parameters, self._squared_norms(total))
            end("reduction")
        verdicts = self._gather(Tensor(np.array([[loss, not is_finite, asked]], np.float32)), "verdicts").asnumpy()
        end("waiting")
        bad_ranks, asked = np.flatnonzero(verdicts[:, 1]), int(verdicts[:, 2].max())
        if not len(bad_ranks) and not np.isfinite(squares).all():
            bad_ranks = range(len(verdicts))
        scale = 1 / len(losses)
        norm = float(np.sqrt(squares.sum()) * scale) if not len(bad_ranks) else float("nan")
        loss = float(loss) if len(verdicts) == 1 else float(verdicts[:, 0].astype(np.float64).mean())
        others = tuple(np.stack([value.asnumpy() for value in values]) for values in zip(*others, strict=True))
        return Gradients(loss, norm, tuple(map(int, bad_ranks)), tuple(total), scale, others, asked)

    def update(self, gradients, factor, step):
        """Changes weights, moments and averages: the gradient multiplied by `factor`; `step` counted from 0."""
        scale = Tensor(factor * gradients.scale, ms.float32)
        share = Tensor(self.ema.share(step), ms.float32)
        done = [update(values, scale, share)
                for update, values in zip(self._update_chunks, _mutable_chunks(gradients.values), strict=True)]
        # The device works behind the host's back: without waiting, its time would be counted as that of what comes
        # next, the copying of a checkpoint for example.
        for chunk in done:
            chunk.asnumpy()

    def _accumulate(self, sums, gradients):
        """Adds gradients to a list of sums, in its place: all of the old ones and of the new would be twice as much."""
        for start in range(0, len(sums), CHUNK_SIZE):
            part = slice(start, start + CHUNK_SIZE)
            sums[part] = self._accumulate_chunk(*(ms.mutable(tuple(values[part])) for values in (sums, gradients)))

    def _squared_norms(self, tensors):
        """Sum of squares of each tensor: NumPy fp32 [number of tensors]."""
        done = [self._squared_norms_of_chunk(chunk) for chunk in _mutable_chunks(tensors)]
        return np.concatenate([squares.asnumpy() for squares in done])


def _mutable_chunks(tensors):
    # Tensors in a plain tuple would be compiled in as constants: a new graph every step.
    return map(ms.mutable, in_chunks(tensors))
