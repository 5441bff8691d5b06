"""Random numbers, and a Cell's gradients, for tests of single layers."""

import mindspore as ms
import numpy as np
from mindspore import nn


def normal(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def spread(*shape, seed=0):
    """Numbers of very different sizes, as gradients are: all bands of HiF8 occur after scaling."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * 10.0 ** rng.uniform(-7, 0, size=shape)).astype(np.float32)


class Weighted(nn.Cell):
    """sum(net(*inputs) * weight)."""

    def __init__(self, net, weight):
        super().__init__()
        self.net = net
        self.weight = weight

    def construct(self, *inputs):
        return (self.net(*inputs) * self.weight).sum()


class Gradients(nn.Cell):
    """Value of a Cell, and its gradients by its inputs and parameters."""

    def __init__(self, net, num_inputs):
        super().__init__()
        self.gradient = ms.value_and_grad(net, tuple(range(num_inputs)), net.trainable_params() or None)

    def construct(self, *inputs):
        return self.gradient(*inputs)
