"""Normalisations over the last axis, computed in fp32 whatever comes in."""

import mindspore as ms
from mindspore import ops


def layer_norm(x, weight, bias, eps):
    """(x - mean) / sqrt(var + eps) * weight + bias.

    x [..., C] any float dtype; weight and bias [C] fp32. Returns fp32 [..., C].
    """
    axis = x.ndim - 1
    return ops.LayerNorm(axis, axis, eps)(x.astype(ms.float32), weight, bias)[0]


def rms_norm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * weight.

    x [..., C] any float dtype; weight [C] fp32. Returns fp32 [..., C].
    """
    x = x.astype(ms.float32)
    return x * ops.rsqrt(ops.square(x).mean(-1, keep_dims=True) + eps) * weight
