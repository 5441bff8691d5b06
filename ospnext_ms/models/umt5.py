"""UMT5, the multilingual T5 v1.1 text encoder of Wan2.1 (arXiv 2304.09151): every layer has a position bias of its own.

B batch, L text tokens, C width, H heads, D head width. Parameter names are those of the PyTorch checkpoint. Linears run
in `dtype`; norms, softmax, position bias and residual stream stay in fp32, as T5's activations grow large.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer
from mindspore.ops import constexpr

from ospnext_ms.kernels.activations import GELU
from ospnext_ms.kernels.slices import embedding
from ospnext_ms.models.config import UMT5Config
from ospnext_ms.models.layers import Linear, RMSNorm

__all__ = ["UMT5Config", "UMT5Encoder", "position_buckets"]

MAX_DISTANCE = 128
DTYPES = (ms.float32, ms.bfloat16)
MASKED = float(np.finfo(np.float32).min)


def position_buckets(length, num_buckets):
    """Bucket of every (query, key) pair, from rel = key - query (T5, arXiv 1910.10683, section 2.1).

    Half of the buckets are for rel > 0. Of each half the first half holds one distance each, the others grow
    logarithmically up to MAX_DISTANCE; what lies beyond shares the last one.

    Returns NumPy int32 [length, length], query first.
    """
    half = num_buckets // 2
    exact = half // 2
    relative = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance = np.abs(relative)
    # Distances such as 64 fall on a border of two buckets. As in the original everything is fp32, but for a logarithm
    # that is rounded correctly: NumPy's own in fp32 depends on the processor.
    log_distance = np.log(np.maximum(distance, exact) / exact).astype(np.float32)
    position = log_distance / np.float32(math.log(MAX_DISTANCE / exact)) * np.float32(half - exact)
    logarithmic = np.minimum(exact + position.astype(np.int64), half - 1)
    return (np.where(distance < exact, distance, logarithmic) + half * (relative > 0)).astype(np.int32)


@constexpr
def _position_buckets_tensor(length, num_buckets):
    return Tensor(position_buckets(length, num_buckets))


class Embedding(nn.Cell):
    """Rows of `weight` [num_rows, dim], initially N(0, std^2). Inputs: ids int32 [...]. Output [..., dim]."""

    def __init__(self, num_rows, dim, std, dtype):
        super().__init__()
        self.weight = Parameter(initializer(Normal(std), (num_rows, dim), dtype), name="weight")

    def construct(self, ids):
        return embedding(self.weight, ids)


class PositionBias(nn.Cell):
    """Learned bias of every head and bucket. Inputs: buckets int32 [L, L]. Output [H, L, L] fp32."""

    def __init__(self, num_buckets, num_heads):
        super().__init__()
        self.embedding = Embedding(num_buckets, num_heads, (2 * num_buckets * num_heads) ** -0.5, ms.float32)

    def construct(self, buckets_LL):
        return self.embedding(buckets_LL).transpose(2, 0, 1)


class TextAttention(nn.Cell):
    """softmax(q k^T + bias) v, without the usual 1 / sqrt(D).

    Inputs: x [B, L, C]; mask [B, 1, 1, L], 0 where a key is padding, or None; bias [H, L, L] fp32. Output [B, L, C].
    """

    def __init__(self, dim, num_heads, dtype):
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.o = (Linear(dim, dim, has_bias=False, dtype=dtype) for _ in range(4))

    def construct(self, x_BLC, mask_B11L, bias_HLL):
        q_BHLD, k_BHLD, v_BHLD = self._heads(self.q(x_BLC)), self._heads(self.k(x_BLC)), self._heads(self.v(x_BLC))
        scores_BHLL = ops.matmul(q_BHLD, k_BHLD.transpose(0, 1, 3, 2)).astype(ms.float32) + bias_HLL
        if mask_B11L is not None:
            scores_BHLL = ops.masked_fill(scores_BHLL, mask_B11L == 0, MASKED)
        weights_BHLL = ops.softmax(scores_BHLL, -1).astype(v_BHLD.dtype)
        out_BLHD = ops.matmul(weights_BHLL, v_BHLD).transpose(0, 2, 1, 3)
        return self.o(out_BLHD.reshape(x_BLC.shape))

    def _heads(self, x_BLC):
        return x_BLC.reshape(*x_BLC.shape[:2], self.num_heads, -1).transpose(0, 2, 1, 3)


class GatedFeedForward(nn.Cell):
    """fc2(fc1(x) * gelu(gate(x))). Inputs: x [..., C]. Output [..., C]."""

    def __init__(self, dim, ffn_dim, dtype):
        super().__init__()
        self.gate = nn.SequentialCell(Linear(dim, ffn_dim, has_bias=False, dtype=dtype), GELU())
        self.fc1 = Linear(dim, ffn_dim, has_bias=False, dtype=dtype)
        self.fc2 = Linear(ffn_dim, dim, has_bias=False, dtype=dtype)

    def construct(self, x):
        return self.fc2(self.fc1(x) * self.gate(x))


class UMT5Block(nn.Cell):
    """x += Attention(norm1(x)); x += FFN(norm2(x)).

    Inputs: x [B, L, C] fp32; mask as in TextAttention; buckets int32 [L, L]. Output: as x.
    """

    def __init__(self, config, dtype):
        super().__init__()
        self.norm1 = RMSNorm(config.dim)
        self.attn = TextAttention(config.dim, config.num_heads, dtype)
        self.norm2 = RMSNorm(config.dim)
        self.ffn = GatedFeedForward(config.dim, config.ffn_dim, dtype)
        self.pos_embedding = PositionBias(config.num_buckets, config.num_heads)

    def construct(self, x_BLC, mask_B11L, buckets_LL):
        x_BLC = x_BLC + self.attn(self.norm1(x_BLC), mask_B11L, self.pos_embedding(buckets_LL)).astype(ms.float32)
        return x_BLC + self.ffn(self.norm2(x_BLC)).astype(ms.float32)


class UMT5Encoder(nn.Cell):
    """Text encoder of Wan2.1.

    Args:
        config: UMT5Config.
        dtype: of the linears and of the stored weights other than norms and position biases: fp32 or bf16.

    Inputs: ids int32 [B, L]; mask [B, L], 0 where a key is padding, None for no mask. Output [B, L, dim] fp32. The rows
    of padding are computed like all others: who uses them has to clear them.

    Raises:
        ValueError: `dtype` is neither fp32 nor bf16 (T5 overflows fp16).
    """

    def __init__(self, config, dtype=ms.float32):
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"text encoder dtype is {dtype}; valid: {', '.join(map(str, DTYPES))}")
        self.num_buckets = config.num_buckets
        self.token_embedding = Embedding(config.vocab_size, config.dim, 1.0, dtype)
        self.blocks = nn.CellList([UMT5Block(config, dtype) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.dim)

    def construct(self, ids_BL, mask_BL=None):
        batch, length = ids_BL.shape
        buckets_LL = _position_buckets_tensor(length, self.num_buckets)
        mask_B11L = None if mask_BL is None else mask_BL.reshape(batch, 1, 1, length)
        x_BLC = self.token_embedding(ids_BL).astype(ms.float32)
        for block in self.blocks:
            x_BLC = block(x_BLC, mask_B11L, buckets_LL)
        return self.norm(x_BLC)
