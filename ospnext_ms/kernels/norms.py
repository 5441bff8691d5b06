"""Normalisations over the last axis, computed in fp32 whatever comes in."""

import mindspore as ms
from mindspore import mint, ops

from ospnext_ms.kernels.device import for_ascend


def layer_norm(x, weight, bias, eps):
    """(x - mean) / sqrt(var + eps) * weight + bias.

    x [..., C] any float dtype; weight and bias [C] fp32, or both None. Returns fp32 [..., C].
    """
    x, width = x.astype(ms.float32), x.shape[-1]
    if for_ascend():
        return mint.nn.functional.layer_norm(x, (width,), weight, bias, eps)
    if weight is None:
        weight, bias = ops.ones((width,), ms.float32), ops.zeros((width,), ms.float32)
    axis = x.ndim - 1
    return ops.LayerNorm(axis, axis, eps)(x, weight, bias)[0]


def rms_norm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * weight.

    x [..., C] any float dtype; weight [C] fp32. Returns fp32 [..., C].
    """
    x = x.astype(ms.float32)
    if for_ascend():
        # MindSpore copies a parameter that this operator's gradient reads anyway, by a legacy operator.
        return ops.rms_norm(x, mint.clone(weight), eps)[0]
    return x * ops.rsqrt(ops.square(x).mean(-1, keep_dims=True) + eps) * weight
