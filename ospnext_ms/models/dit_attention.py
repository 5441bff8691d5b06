"""Self- and cross-attention of a block. B batch, N tokens, C width, H heads, D head width, L text tokens."""

from mindspore import nn

from ospnext_ms.kernels.fan_out import fan_out
from ospnext_ms.kernels.rotary import RotatePairs
from ospnext_ms.models.layers import RMSNorm


class SelfAttention(nn.Cell):
    """Attention of the video tokens, full or inside the sub-sequences of a pattern.

    q and k are RMS-normalised over the full width C before the split into heads, then rotated (RoPE).

    Args:
        dim, num_heads: C and H. linear: factory (in, out) -> Cell. sequence, attention: see OSPNextDiT.
        sparse: attend inside sub-sequences.
        inputs: Cell (q, k, v) -> (q, k, v, factor): what the kernel is given for them, and what its output is
            multiplied with; None leaves them as they are.

    Inputs: x [B, N, C] in the order of `pattern`; rope (cos, sin) in that order; grid (T, H, W). Output [B, N, C].
    """

    def __init__(self, dim, num_heads, linear, sequence, attention, sparse, dtype, inputs=None):
        super().__init__()
        self.num_heads = num_heads
        self.sequence = sequence
        self.attention = attention
        self.sparse = sparse
        self.dtype = dtype
        self.inputs = inputs
        self.q, self.k, self.v, self.o = (linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim), RMSNorm(dim)
        self.thrice = fan_out(3)
        self.rotate = RotatePairs()

    def construct(self, x_BNC, cos_1N1D, sin_1N1D, grid, pattern):
        shape = (*x_BNC.shape[:2], self.num_heads, x_BNC.shape[2] // self.num_heads)
        for_q, for_k, for_v = self.thrice(x_BNC)
        q_BNHD = self.rotate(self.norm_q(self.q(for_q)).reshape(shape), cos_1N1D, sin_1N1D).astype(self.dtype)
        k_BNHD = self.rotate(self.norm_k(self.k(for_k)).reshape(shape), cos_1N1D, sin_1N1D).astype(self.dtype)
        v_BNHD = self.v(for_v).reshape(shape).astype(self.dtype)
        factor = None
        if self.inputs is not None:
            q_BNHD, k_BNHD, v_BNHD, factor = self.inputs(q_BNHD, k_BNHD, v_BNHD)
        if self.sparse:
            out_BNHD = self.sequence.attend_sparse(self.attention, q_BNHD, k_BNHD, v_BNHD, grid, pattern)
        else:
            out_BNHD = self.sequence.attend_full(self.attention, q_BNHD, k_BNHD, v_BNHD, grid, pattern)
        if factor is not None:
            out_BNHD = (out_BNHD * factor).astype(self.dtype)
        return self.o(out_BNHD.reshape(x_BNC.shape))


class CrossAttention(nn.Cell):
    """Attention of the video tokens to the text; keys and values are projected once per sample.

    Inputs: x [B, N, C], text [B, L, C]. Output [B, N, C].
    """

    def __init__(self, dim, num_heads, linear, attention, dtype):
        super().__init__()
        self.num_heads = num_heads
        self.attention = attention
        self.dtype = dtype
        self.q, self.k, self.v, self.o = (linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim), RMSNorm(dim)
        self.both = fan_out(2)

    def construct(self, x_BNC, text_BLC):
        for_k, for_v = self.both(text_BLC)
        out_BNHD = self.attention(
            self._heads(self.norm_q(self.q(x_BNC))),
            self._heads(self.norm_k(self.k(for_k))),
            self._heads(self.v(for_v)),
        )
        return self.o(out_BNHD.reshape(x_BNC.shape))

    def _heads(self, x_BNC):
        return x_BNC.reshape(*x_BNC.shape[:2], self.num_heads, -1).astype(self.dtype)
