"""Rotation of interleaved pairs, in fp32."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr

from ospnext_ms.kernels.device import on_ascend


class RotatePairs(nn.Cell):
    """(x[2i] cos - x[2i+1] sin, x[2i] sin + x[2i+1] cos) in place of the pairs (2i, 2i+1) of every head.

    x [B, N, H, D] any float dtype; cos and sin [N, D/2] fp32. Output fp32 [B, N, H, D].

    Elsewhere than on Ascend the pairs are swapped by a product with a constant matrix, which is exact: the CPU
    backend's gradient of a concatenation along a short last axis alone took a fifth of a training step.
    """

    def __init__(self):
        super().__init__()
        self.native = on_ascend()

    def construct(self, x_BNHD, cos_ND, sin_ND):
        x = x_BNHD.astype(ms.float32)
        return _by_operator(x, cos_ND, sin_ND) if self.native else _by_product(x, cos_ND, sin_ND)


def _by_operator(x, cos_ND, sin_ND):
    """One call of RotaryPositionEmbedding; mode 1 rotates interleaved pairs."""
    return ops.rotary_position_embedding(x, _for_both(cos_ND), _for_both(sin_ND), 1)


def _by_product(x, cos_ND, sin_ND):
    turned = ops.MatMul()(x.reshape(-1, x.shape[-1]), _quarter_turn(x.shape[-1])).reshape(x.shape)
    return x * _for_both(cos_ND) + turned * _for_both(sin_ND)


def _for_both(table_ND):
    """[N, D/2] -> [1, N, 1, D], each number twice."""
    num_tokens, pairs = table_ND.shape
    return ops.tile(table_ND.reshape(num_tokens, pairs, 1), (1, 1, 2)).reshape(1, num_tokens, 1, 2 * pairs)


@constexpr
def _quarter_turn(head_dim):
    """Matrix M [D, D] with (x M)[2i] = -x[2i+1] and (x M)[2i+1] = x[2i]."""
    return Tensor(np.kron(np.eye(head_dim // 2), np.array([[0, 1], [-1, 0]])).astype(np.float32))
