"""The moving average of weights."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from ospnext_ms.training.ema import Ema


def make_weight():
    return Parameter(Tensor(np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)), name="w")


def test_the_average_follows_the_weights():
    weight = make_weight()
    ema = Ema([weight], 0.9)
    average = weight.asnumpy().astype(np.float64)
    for step in range(5):
        ms.ops.assign(weight, Tensor(np.full((3, 2), step, np.float32)))
        for chunk in ema.chunks:
            chunk(Tensor(ema.share(step), ms.float32))
        average += 0.1 * (step - average)
    np.testing.assert_allclose(ema.averages[0].asnumpy(), average, rtol=1e-6)


def test_with_warm_up_the_average_is_shorter_at_first():
    ema = Ema([make_weight()], 0.99, warm_up=True)
    assert ema.share(0) == pytest.approx(0.9)
    assert ema.share(10**6) == pytest.approx(0.01)


def test_within_the_block_the_averages_stand_in_for_the_weights_even_in_compiled_graphs():
    weight = make_weight()
    ema = Ema([weight], 0.5)

    class Sum(nn.Cell):
        def __init__(self):
            super().__init__()
            self.weight = weight

        def construct(self, x):
            return (self.weight * x).sum()

    total, one = ms.jit(Sum()), Tensor(1.0, ms.float32)
    before = float(total(one))
    ms.ops.assign(weight, Tensor(np.full((3, 2), 7, np.float32)))
    assert float(total(one)) == 42.0
    with ema.in_place():
        assert float(total(one)) == before
    assert float(total(one)) == 42.0
