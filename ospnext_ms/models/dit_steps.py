"""The transformer in two parts: with its blocks, and with what they added in an earlier step instead of them."""

from mindspore import nn


class ComputedStep(nn.Cell):
    """The network, and what its blocks add to the hidden states.

    Args:
        net: OSPNextDiT.

    Inputs as the network's. Outputs: velocity as the network's; residual [B, N, C] in the residual stream's dtype and
    in the order in which the tokens leave the blocks.
    """

    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, x, t, text):
        net = self.net
        grid = net.grid_of(x, t, text)
        e_BC, e0_B6C = net.embed_time(t)
        before_BNC = net.embed_patches(x, grid)
        after_BNC = net.run_blocks(before_BNC, e0_B6C, net.embed_text(text), grid)
        residual_BNC = after_BNC - net.in_last_order(before_BNC, grid)
        return net.project(after_BNC, e_BC, grid), residual_BNC


class ReusedStep(nn.Cell):
    """The network without its blocks: x [B, C, T, H', W'], t [B], text and residual of a ComputedStep -> velocity."""

    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, x, t, text, residual_BNC):
        net = self.net
        grid = net.grid_of(x, t, text)
        e_BC, _ = net.embed_time(t)
        x_BNC = net.in_last_order(net.embed_patches(x, grid), grid)
        return net.project(x_BNC + residual_BNC, e_BC, grid)
