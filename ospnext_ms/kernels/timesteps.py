"""Elementary functions of the few numbers that the schedule hands to the network, as exact as in float64."""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ospnext_ms.kernels.device import for_ascend, on_ascend

# 2 pi in parts of 11 bits, so that their products with whole numbers below 2^12 are exact in fp32.
_BITS = 11


def _parts(value, count):
    """`value` as a sum of `count` numbers, all but the last of _BITS bits; float64."""
    parts = []
    for _ in range(count - 1):
        _, exponent = math.frexp(value)
        unit = 2.0 ** (exponent - _BITS)
        parts.append(math.floor(value / unit) * unit)
        value -= parts[-1]
    return [*parts, value]


class Sinusoid(nn.Cell):
    """[cos(t f), sin(t f)] of timesteps t in [0, 1000]: fp32 [B] -> fp32 [B, freq_dim], f the frequencies of the paper.

    An angle reaches 1000, of which fp32 alone would lose three digits. Elsewhere than on Ascend it is computed in
    float64. Ascend's cores have none: there t and f are each split in two, so that the largest of the four products is
    exact, and whole turns are taken off it in parts before anything is rounded.
    """

    def __init__(self, frequencies):
        super().__init__()
        self.in_float64 = not on_ascend()
        if self.in_float64:
            self.frequencies = Tensor(frequencies, ms.float64)
            return
        high = np.array([_parts(value, 2)[0] for value in frequencies])
        self.high, self.low = Tensor(high, ms.float32), Tensor(frequencies - high, ms.float32)
        self.turn = tuple(float(np.float32(part)) for part in _parts(2 * math.pi, 3))

    def construct(self, t_B):
        if self.in_float64:
            angles = t_B.astype(ms.float64).reshape(-1, 1) * self.frequencies.reshape(1, -1)
            return ops.cat((ops.cos(angles), ops.sin(angles)), 1).astype(ms.float32)
        angles = self.reduced(t_B.astype(ms.float32).reshape(-1, 1))
        return ops.cat((ops.cos(angles), ops.sin(angles)), 1)

    def reduced(self, t_B1):
        """Angles t f less whole turns, fp32 [B, freq_dim / 2]."""
        high = self.high.reshape(1, -1)
        low = self.low.reshape(1, -1)
        # The upper 12 bits of t: rounded where its last bits would stand.
        scaled = t_B1 * 4097.0
        t_high = scaled - (scaled - t_B1)
        t_low = t_B1 - t_high
        product = t_high * high
        turns = ops.floor(product * (1 / (2 * math.pi)) + 0.5)
        rest = ((product - turns * self.turn[0]) - turns * self.turn[1]) - turns * self.turn[2]
        return rest + (t_high * low + (t_low * high + t_low * low))


def log(x):
    """Natural logarithm, fp32, shape of x.

    In float64 where there is one: MindSpore's CPU kernel of fp32 rounds a few elements by how threads share them.
    """
    if for_ascend():
        return ops.log(x.astype(ms.float32))
    return ops.log(x.astype(ms.float64)).astype(ms.float32)
