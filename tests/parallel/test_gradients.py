"""Sums of gradients over the processes; what they are worth is measured by tests/distributed."""

import weakref

import numpy as np
import pytest
from mindspore import Tensor

from ospnext_ms.parallel.gradients import GradientReducer

pytestmark = pytest.mark.framework


class Doubling:
    """Stands for a sum over two processes of equal gradients; notes which gradients are alive when it is asked."""

    size = 2

    def __init__(self, alive):
        self.alive = alive
        self.seen = []

    def __call__(self, flat, label):
        self.seen.append(self.alive())
        return flat * 2


def test_a_gradient_is_let_go_when_its_sum_is_there():
    gradients = [Tensor(np.full((2, 3), i, np.float32)) for i in range(4)]
    watched = [weakref.ref(gradient) for gradient in gradients]
    reducer = GradientReducer.__new__(GradientReducer)
    all_reduce = Doubling(lambda: sum(reference() is not None for reference in watched))
    reducer._scale, reducer._buckets = 0.5, [(all_reduce, [i]) for i in range(4)]
    reducer(gradients)
    assert all_reduce.seen == [4, 3, 2, 1]
    assert all(gradient.shape == (2, 3) for gradient in gradients)
    assert [float(gradient.asnumpy().mean()) for gradient in gradients] == [0, 1, 2, 3]
