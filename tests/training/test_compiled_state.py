"""Compiled updates: what the host changes between two calls reaches them (Parameter.set_data does not), and they go
over as many parameters as the largest model has."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from ospnext_ms.parallel.mesh import Mesh
from ospnext_ms.parallel.sharding import ShardedWeights
from ospnext_ms.runtime import Runtime
from ospnext_ms.training.chunks import in_chunks
from ospnext_ms.training.ema import Ema
from ospnext_ms.training.optimizer import make_optimizer, set_learning_rate
from ospnext_ms.training.step import Gradients, TrainStep


class Weight(nn.Cell):
    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(np.ones(4, np.float32)), name="weight")

    def construct(self, x):
        return (self.weight * x).sum()


def test_learning_rate_of_every_step_is_the_one_set():
    net = Weight()
    optimizer = make_optimizer(net.trainable_params(), betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    update = ms.jit(optimizer.chunks[0])
    for rate in (0.1, 0.0, 0.3):
        before = net.weight.asnumpy().copy()
        set_learning_rate(optimizer, rate)
        update((Tensor(np.ones(4, np.float32)),))
        np.testing.assert_allclose(before - net.weight.asnumpy(), rate, rtol=1e-5, atol=1e-6)


def test_averages_stand_in_a_compiled_graph():
    net = Weight()
    ema, compiled, x = Ema(net.trainable_params(), 0.5), ms.jit(net), Tensor(np.ones(4, np.float32))
    ms.ops.assign(net.weight, Tensor(np.full(4, 3, np.float32)))
    assert compiled(x).asnumpy() == 12
    for chunk in ema.chunks:
        chunk(Tensor(0.5, ms.float32))
    with ema.in_place():
        assert compiled(x).asnumpy() == 8
    assert compiled(x).asnumpy() == 12


class Descent(nn.Cell):
    """p -= gradient, for some parameters."""

    def __init__(self, parameters):
        super().__init__()
        self.weights = ParameterTuple(parameters)
        self.map = ops.HyperMap()

    def construct(self, gradients):
        return self.map(ops.assign_sub, self.weights, gradients)


class DescentInChunks:
    """An optimiser in the form of ChunkedAdamW that compiles fast."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.chunks = [Descent(chunk) for chunk in in_chunks(parameters)]


def update_many(make):
    """Accumulates, measures and applies two gradients of 1,100 parameters, as 14B has (1,095), in compiled graphs.

    `make`: parameters -> optimiser. Returns weights before, gradient, weights after, all [n, 4].
    """
    values = np.random.default_rng(0).standard_normal((3, 1100, 4)).astype(np.float32)
    optimizer = make([Parameter(Tensor(row), name=f"{i}.weight") for i, row in enumerate(values[0])])
    mesh, ema = Mesh.single(), Ema(optimizer.parameters, 0.75)
    step = TrainStep(nn.Cell(), optimizer, ema, Runtime("CPU", ms.float32, True), mesh,
                     ShardedWeights(nn.Cell(), mesh))
    total, others = (list(map(Tensor, rows)) for rows in values[1:])
    step._accumulate(total, others)
    gradient = values[1] + values[2]
    np.testing.assert_array_equal([tensor.asnumpy() for tensor in total], gradient)
    np.testing.assert_allclose(step._squared_norms(total), (gradient**2).sum(1), rtol=1e-6)
    step.update(Gradients(0.0, 1.0, (), total, 0.5), 0.5, 0)
    after, averages = ([tensor.asnumpy() for tensor in tensors] for tensors in (optimizer.parameters, ema.averages))
    np.testing.assert_allclose(averages, values[0] + 0.25 * (np.array(after) - values[0]), rtol=1e-5, atol=1e-6)
    return values[0], gradient, after


def test_as_many_parameters_as_the_largest_model_has():
    before, gradient, after = update_many(DescentInChunks)
    np.testing.assert_allclose(after, before - 0.25 * gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_as_many_parameters_as_the_largest_model_has_with_adamw():
    def make(parameters):
        optimizer = make_optimizer(parameters, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
        set_learning_rate(optimizer, 0.01)
        return optimizer

    before, gradient, after = update_many(make)
    # The first step of Adam goes by the sign of the gradient.
    np.testing.assert_allclose(after, before * (1 - 0.01 * 0.1) - 0.01 * np.sign(gradient), rtol=1e-4, atol=1e-6)
