"""Softmax attention without masks: FlashAttentionScore on Ascend, an exact blockwise softmax elsewhere.

B batch, N query tokens, M key tokens, H heads, D head width.
"""

import mindspore as ms
from mindspore import nn, ops

from ospnext_ms.kernels.device import on_ascend
from ospnext_ms.kernels.slices import narrow

# Scores held at once by the blockwise softmax, in elements: 64 MiB in fp32.
SCORES_PER_BLOCK = 2**24
FLASH_DTYPES = (ms.float16, ms.bfloat16)


def default_attention(dtype):
    """"flash" where FlashAttentionScore exists and takes `dtype`, else "blockwise"."""
    return "flash" if on_ascend() and dtype in FLASH_DTYPES else "blockwise"


class Attention(nn.Cell):
    """softmax(q k^T / sqrt(D)) v.

    Args:
        implementation: "flash" (FlashAttentionScore; fp16 and bf16, D a multiple of 16, at most 512) or
            "blockwise" (any device; working memory SCORES_PER_BLOCK scores, however long the sequences).

    Inputs:  q [B, N, H, D], k and v [B, M, H, D], one dtype. Output: [B, N, H, D] in that dtype.
    """

    def __init__(self, implementation):
        super().__init__()
        if implementation not in ("flash", "blockwise"):
            raise ValueError(f"attention implementation is {implementation!r}; valid: 'flash', 'blockwise'")
        self.flash = implementation == "flash"

    def construct(self, q_BNHD, k_BMHD, v_BMHD):
        if self.flash:
            return flash_attention(q_BNHD, k_BMHD, v_BMHD)
        return blockwise_attention(q_BNHD, k_BMHD, v_BMHD)


def flash_attention(q_BNHD, k_BMHD, v_BMHD):
    """Contract of Attention through FlashAttentionScore: one BSND call, no mask, scale given (its default is 1)."""
    num_heads, head_dim = q_BNHD.shape[2], q_BNHD.shape[3]
    return ops.flash_attention_score(
        q_BNHD, k_BMHD, v_BMHD, num_heads, scalar_value=head_dim**-0.5, input_layout="BSND"
    )


def blockwise_attention(q_BNHD, k_BMHD, v_BMHD):
    """Contract of Attention with plain operators: rows of the score matrix block by block, softmax in fp32."""
    batch, num_queries, num_heads, head_dim = q_BNHD.shape
    num_keys = k_BMHD.shape[1]
    q_BHND = q_BNHD.transpose(0, 2, 1, 3) * head_dim**-0.5
    k_BHDM = k_BMHD.transpose(0, 2, 3, 1)
    v_BHMD = v_BMHD.transpose(0, 2, 1, 3)
    rows = max(1, SCORES_PER_BLOCK // (batch * num_heads * num_keys))
    blocks = []
    for start in range(0, num_queries, rows):
        scores = ops.matmul(narrow(q_BHND, 2, start, min(rows, num_queries - start)), k_BHDM)
        weights = ops.softmax(scores.astype(ms.float32), -1).astype(v_BHMD.dtype)
        blocks.append(ops.matmul(weights, v_BHMD))
    out_BHND = blocks[0] if len(blocks) == 1 else ops.cat(blocks, 2)
    return out_BHND.transpose(0, 2, 1, 3)
