"""Attention whose q, k and v are quantised. B batch, N and M tokens, H heads, D head width.

The kernel is given q8 / (s_q s_k), k8 and v8, and its output is divided by s_v: k8 and v8 are exact in every dtype, and
q carries the scales because the factor of FlashAttentionScore is an attribute of the operator, which a computed number
cannot be.
"""

from mindspore import nn, ops

from ospnext_ms.kernels.collectives import AllMax
from ospnext_ms.kernels.hif8_operators import Amax, Quantize, scale_for
from ospnext_ms.kernels.slices import narrow


class StraightThrough(nn.Cell):
    """x * scale rounded to HiF8, as numbers of `dtype`; the gradient is that of x * scale. scale fp32 [1] has none."""

    def __init__(self, native, bound, dtype):
        super().__init__()
        self.dtype = dtype
        self.quantize = Quantize(native, dtype, bound)

    def construct(self, x, scale):
        # No attention kernel that MindSpore has takes hifloat8, so these are numbers on every back end.
        return self.quantize(x, scale).astype(self.dtype)

    def bprop(self, x, scale, out, dout):
        return (dout * scale).astype(x.dtype), ops.zeros_like(scale)


class AttentionInputs(nn.Cell):
    """q, k, v [B, N, H, D] -> what the kernel is given, and the factor fp32 [1] of its output.

    Args:
        recipe: HiF8Recipe; with a group of several ranks one exchange finds all three scales. dtype: of the kernel.
    """

    def __init__(self, recipe, dtype):
        super().__init__()
        self.scale_max = recipe.scale_max_forward
        self.dtype = dtype
        self.amax = Amax()
        self.all_max = AllMax(recipe.group)
        self.quantize = StraightThrough(recipe.native, recipe.scale_max_forward, dtype)

    def construct(self, q, k, v):
        amax = self.all_max(ops.cat((self.amax(q), self.amax(k), self.amax(v))), "scales")
        scales = scale_for(amax, self.scale_max)
        q_scale, k_scale, v_scale = (narrow(scales, 0, i, 1) for i in range(3))
        q8 = (self.quantize(q, q_scale) * (1 / q_scale / k_scale)).astype(self.dtype)
        return q8, self.quantize(k, k_scale), self.quantize(v, v_scale), 1 / v_scale


class HiF8Attention(nn.Cell):
    """An attention kernel with quantised inputs; contract of kernels.attention.Attention."""

    def __init__(self, attention, inputs):
        super().__init__()
        self.attention = attention
        self.inputs = inputs

    def construct(self, q_BNHD, k_BMHD, v_BMHD):
        q, k, v, factor = self.inputs(q_BNHD, k_BMHD, v_BMHD)
        return (self.attention(q, k, v) * factor).astype(v_BMHD.dtype)
