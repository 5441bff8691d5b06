"""Rotation of interleaved pairs, in fp32."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr

from ospnext_ms.kernels.device import on_ascend


class RotatePairs(nn.Cell):
    """(x[2i] cos - x[2i+1] sin, x[2i] sin + x[2i+1] cos) in place of the pairs (2i, 2i+1) of every head.

    x [B, N, H, D] any float dtype; cos and sin from `rotations`. Output fp32 [B, N, H, D].

    Elsewhere than on Ascend the pairs are swapped by a product with a constant matrix, which is exact: the CPU
    backend's gradient of a concatenation along a short last axis alone took a fifth of a training step.
    """

    def __init__(self):
        super().__init__()
        self.native = on_ascend()

    def construct(self, x_BNHD, cos_1N1D, sin_1N1D):
        x = x_BNHD.astype(ms.float32)
        if self.native:
            # Mode 1 rotates interleaved pairs.
            return ops.rotary_position_embedding(x, cos_1N1D, sin_1N1D, 1)
        turned = ops.MatMul()(x.reshape(-1, x.shape[-1]), _quarter_turn(x.shape[-1])).reshape(x.shape)
        return x * cos_1N1D + turned * sin_1N1D


def rotations(cos_ND, sin_ND):
    """Cosines and sines, NumPy fp32 [N, D/2], as RotatePairs takes them: Tensors fp32 [1, N, 1, D], each number twice.

    Made on the host and once for all blocks: what a graph makes of constants it keeps, for every block anew.
    """
    return tuple(Tensor(np.repeat(table, 2, 1)[None, :, None]) for table in (cos_ND, sin_ND))


@constexpr
def _quarter_turn(head_dim):
    """Matrix M [D, D] with (x M)[2i] = -x[2i+1] and (x M)[2i+1] = x[2i]."""
    return Tensor(np.kron(np.eye(head_dim // 2), np.array([[0, 1], [-1, 0]])).astype(np.float32))
