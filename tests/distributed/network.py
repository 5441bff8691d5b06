"""The network that several processes share, its inputs and its loss."""

import numpy as np
from mindspore import Tensor, nn

from ospnext_ms.models.dit import DiTConfig
from tests.distributed.cases import MODEL

CONFIG = DiTConfig(**MODEL)


class Loss(nn.Cell):
    """Weighted mean of the network's output, and the output."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def construct(self, x, t, text, weight):
        out = self.net(x, t, text)
        return (out * weight).mean(), out


def inputs(grid, batch):
    """x, t, text and the loss's weights of a case."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(batch, 16, grid[0], 2 * grid[1], 2 * grid[2]))
    t = rng.uniform(0, 1000, size=batch)
    text = rng.normal(size=(batch, CONFIG.text_len, CONFIG.text_dim))
    weight = rng.normal(size=x.shape)
    return [Tensor(a.astype(np.float32)) for a in (x, t, text, weight)]
