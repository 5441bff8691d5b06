"""Activation functions."""

from mindspore import nn, ops

from ospnext_ms.kernels.device import on_ascend

SQRT_8_OVER_PI = 1.5957691216057308
CUBIC = 0.044715


class GELU(nn.Cell):
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); shape and dtype of x.

    Elsewhere than on Ascend computed as x * sigmoid(sqrt(8/pi) (x + ...)), the same function: the CPU backend's own
    GELU takes three times as long.
    """

    def __init__(self):
        super().__init__()
        self.native = on_ascend()

    def construct(self, x):
        if self.native:
            return ops.gelu(x, approximate="tanh")
        return x * ops.sigmoid(x * (SQRT_8_OVER_PI + SQRT_8_OVER_PI * CUBIC * x * x))
