"""One tensor for several uses."""

from mindspore import nn

from ospnext_ms.kernels.device import on_ascend


def fan_out(count):
    """Cell: x -> `count` times x, whose gradients are added one after the other.

    MindSpore adds them by AddN, which is on the legacy operator path on Ascend; there they are added by Add.
    """
    return AddedFanOut(count) if on_ascend() else FanOut(count)


class FanOut(nn.Cell):
    """x [...] -> a tuple of `count` times x."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def construct(self, x):
        return (x,) * self.count


class AddedFanOut(FanOut):
    """FanOut with a gradient of its own, in the dtype of x."""

    def bprop(self, x, out, dout):
        total = dout[0]
        for gradient in dout[1:]:
            total = total + gradient
        return (total,)
