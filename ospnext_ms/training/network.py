"""The transformer as it is trained, and its loss."""

import mindspore as ms
from mindspore import nn, ops

from ospnext_ms.diffusion.flow import add_noise, velocity_target
from ospnext_ms.models.dit import OSPNextDiT
from ospnext_ms.runtime import DTYPES


def build_network(section, runtime, mesh=None, recompute=False):
    """OSPNextDiT for training: fp32 master weights, matrix products in the run's dtype.

    Args:
        section: TrainDiTSection. runtime: runtime.Runtime. mesh: parallel.mesh.Mesh, None for one process.
        recompute: keep only the blocks' inputs for the backward pass.
    """
    sequence = None
    if mesh is not None and mesh.video_group.size > 1:
        from ospnext_ms.parallel.sequence import ParallelSequence

        sequence = ParallelSequence(section.sparse_ratio, section.num_heads, mesh)
    residual = DTYPES[section.residual_dtype] if section.residual_dtype else None
    net = OSPNextDiT(section, runtime.dtype, param_dtype=ms.float32, residual_dtype=residual, sequence=sequence,
                     video_group=mesh.video_group if mesh is not None else None)
    net.set_train(True)
    if recompute:
        for block in net.blocks:
            block.recompute()
    return net


class VelocityLoss(nn.Cell):
    """Mean squared error of the velocity at x_sigma = sigma * noise + (1 - sigma) * x0.

    Inputs: x0 and noise [B, 16, T, h, w] fp32, sigma [B] fp32, text [B, L, C] fp32. Output: scalar fp32.
    """

    def __init__(self, net):
        super().__init__()
        self.net = net

    def construct(self, x0, noise, sigma, text):
        velocity = self.net(add_noise(x0, noise, sigma), 1000.0 * sigma, text)
        return ops.square(velocity - velocity_target(x0, noise)).mean()
