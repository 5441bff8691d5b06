"""The loss of flow matching."""

from mindspore import nn, ops

from ospnext_ms.diffusion.flow import add_noise, velocity_target
from ospnext_ms.kernels.reductions import mean


class VelocityLoss(nn.Cell):
    """Mean squared error of the velocity at x_sigma = sigma * noise + (1 - sigma) * x0.

    Inputs: x0 and noise [B, 16, T, h, w] fp32, sigma [B] fp32, text [B, L, C] fp32. Output: scalar fp32.
    """

    def __init__(self, net):
        super().__init__()
        self.net = net

    def construct(self, x0, noise, sigma, text):
        velocity = self.net(add_noise(x0, noise, sigma), 1000.0 * sigma, text)
        return mean(ops.square(velocity - velocity_target(x0, noise)))
