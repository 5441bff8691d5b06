"""What the host changes between two calls of a compiled graph has to reach it (Parameter.set_data does not)."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from ospnext_ms.training.ema import Ema
from ospnext_ms.training.optimizer import make_optimizer, set_learning_rate


class Weight(nn.Cell):
    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(np.ones(4, np.float32)), name="weight")

    def construct(self, x):
        return (self.weight * x).sum()


def test_learning_rate_of_every_step_is_the_one_set():
    net = Weight()
    optimizer = make_optimizer(net.trainable_params(), betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    update = ms.jit(optimizer)
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
    ema(Tensor(0.5, ms.float32))
    with ema.in_place():
        assert compiled(x).asnumpy() == 8
    assert compiled(x).asnumpy() == 12
