"""Attention whose q, k and v are quantised. B batch, N and M tokens, H heads, D head width.

k less its mean over the tokens of a call loses less to rounding, and no softmax sees the difference: it adds one number
to all scores of a query. In real arithmetic neither the output nor a gradient changes.

The kernel is given q8 / (s_q s_k), k8 and v8, and its output is divided by s_v: k8 and v8 are exact in every dtype, and
q carries the scales because the factor of FlashAttentionScore is an attribute of the operator, which a computed number
cannot be.
"""

import mindspore as ms
from mindspore import nn, ops

from ospnext_ms.kernels.collectives import AllMax, AllReduceSum
from ospnext_ms.kernels.hif8_operators import ALONE, Amax, Quantize, scale_for
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


class MeanOverTokens(nn.Cell):
    """k [B, M, H, D] of any float dtype -> its mean over the tokens, fp32 [B, 1, H, D]. Without gradient: those of all
    keys of a softmax add up to zero.

    Args:
        group: ProcessGroup of the ranks among which the tokens are spread, unevenly perhaps.
    """

    def __init__(self, group):
        super().__init__()
        self.size = group.size
        self.all_sum = AllReduceSum(group)

    def construct(self, k_BMHD):
        k_BMHD = ops.stop_gradient(k_BMHD).astype(ms.float32)
        sum_B1HD, tokens = k_BMHD.sum(1, keepdims=True), k_BMHD.shape[1]
        if self.size == 1:
            return sum_B1HD / tokens
        entries = sum_B1HD.size
        sums = self.all_sum(ops.cat((sum_B1HD.reshape(-1), ops.full((1,), tokens, dtype=ms.float32))), "key_means")
        return (narrow(sums, 0, 0, entries) / narrow(sums, 0, entries, 1)).reshape(sum_B1HD.shape)


class AttentionInputs(nn.Cell):
    """q, k, v [B, N, H, D] -> what the kernel is given, and the factor fp32 [1] of its output.

    Args:
        recipe: HiF8Recipe; with a group of several ranks one exchange finds all three scales. dtype: of the kernel.
        key_group: ProcessGroup of the ranks among which the keys are spread, see MeanOverTokens.
    """

    def __init__(self, recipe, dtype, key_group=ALONE):
        super().__init__()
        self.key_mean = MeanOverTokens(key_group) if recipe.centre_keys else None
        self.scale_max = recipe.scale_max_forward
        self.dtype = dtype
        self.amax = Amax()
        self.all_max = AllMax(recipe.group)
        self.quantize = StraightThrough(recipe.native, recipe.scale_max_forward, dtype)

    def construct(self, q, k, v):
        if self.key_mean is not None:
            k = k.astype(ms.float32) - self.key_mean(k)
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
