"""Small layers of the diffusion transformer. Parameter names are those of the PyTorch checkpoints."""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import XavierUniform, initializer

from ospnext_ms.kernels import norms
from ospnext_ms.kernels.linear import project

NORM_EPS = 1e-6


def identity(x):
    """x."""
    return x


class Linear(nn.Cell):
    """y = x weight^T + bias, computed in `dtype`; weight [out_channels, in_channels], bias [out_channels].

    Input [..., in_channels] of any float dtype, output [..., out_channels] in `dtype`. The weight is read through
    `gather_weight`, a Cell or function from the parameter to the whole weight, which whoever shards the parameter
    replaces. `adapter`, a Cell from x to something added to y, with a Cell `both` from x to twice x, belongs to
    models.lora; None adds nothing.
    """

    def __init__(self, in_channels, out_channels, has_bias=True, dtype=ms.float32, param_dtype=None):
        super().__init__()
        self.dtype = dtype
        param_dtype = param_dtype or dtype
        self.weight = Parameter(initializer(XavierUniform(), (out_channels, in_channels), param_dtype), name="weight")
        self.gather_weight = identity
        self.adapter = None
        self.has_bias = has_bias
        if has_bias:
            self.bias = Parameter(initializer("zeros", (out_channels,), param_dtype), name="bias")

    def construct(self, x):
        weight = self.gather_weight(self.weight).astype(self.dtype)
        bias = self.bias.astype(self.dtype) if self.has_bias else None
        if self.adapter is None:
            return project(x.astype(self.dtype), weight, bias)
        x, seen = self.adapter.both(x)
        return project(x.astype(self.dtype), weight, bias) + self.adapter(seen)


class LayerNorm(nn.Cell):
    """LayerNorm over the last axis [..., C] in fp32; fp32 out. With `affine` it has weight and bias [C]."""

    def __init__(self, dim, affine):
        super().__init__()
        self.dim = dim
        self.affine = affine
        if affine:
            self.weight = Parameter(initializer("ones", (dim,), ms.float32), name="weight")
            self.bias = Parameter(initializer("zeros", (dim,), ms.float32), name="bias")

    def construct(self, x):
        if self.affine:
            return norms.layer_norm(x, self.weight, self.bias, NORM_EPS)
        return norms.layer_norm(x, None, None, NORM_EPS)


class RMSNorm(nn.Cell):
    """x / rms(x) * weight over the last axis [..., C] in fp32; fp32 out."""

    def __init__(self, dim):
        super().__init__()
        self.weight = Parameter(initializer("ones", (dim,), ms.float32), name="weight")

    def construct(self, x):
        return norms.rms_norm(x, self.weight, NORM_EPS)


class GatedUpdate(nn.Cell):
    """x + gate * y, computed in fp32 and rounded once to the dtype of x: how a block changes the residual stream.

    Inputs: x [B, N, C]; y [B, N, C] of any float dtype; gate [B, 1, C] fp32. With a gradient of its own, because
    MindSpore's recomputation of a block keeps everything of it where the product's is derived (docs/ascend.md).
    """

    def construct(self, x_BNC, y_BNC, gate_B1C):
        return (x_BNC.astype(ms.float32) + y_BNC.astype(ms.float32) * gate_B1C).astype(x_BNC.dtype)

    def bprop(self, x_BNC, y_BNC, gate_B1C, out, dout):
        dout_BNC = dout.astype(ms.float32)
        dgate_B1C = (dout_BNC * y_BNC.astype(ms.float32)).sum(1, keepdims=True)
        return dout.astype(x_BNC.dtype), (dout_BNC * gate_B1C).astype(y_BNC.dtype), dgate_B1C


class SiLU(nn.Cell):
    """x * sigmoid(x)."""

    def construct(self, x):
        return ops.silu(x)


class PatchEmbedding(nn.Cell):
    """Convolution whose stride is its kernel, as one matrix product on unfolded patches.

    Input patches [B, N, in_channels * prod(patch_size)] (channel first, then t, h, w inside the patch), output
    [B, N, dim] in `dtype`. weight [dim, in_channels, *patch_size], bias [dim].
    """

    def __init__(self, in_channels, dim, patch_size, dtype, param_dtype):
        super().__init__()
        self.dtype = dtype
        shape = (dim, in_channels, *patch_size)
        self.flat_shape = (dim, in_channels * math.prod(patch_size))
        self.weight = Parameter(initializer(XavierUniform(), shape, param_dtype), name="weight")
        self.bias = Parameter(initializer("zeros", (dim,), param_dtype), name="bias")

    def construct(self, patches_BNK):
        weight = self.weight.reshape(self.flat_shape).astype(self.dtype)
        return project(patches_BNK.astype(self.dtype), weight, self.bias.astype(self.dtype))


def timestep_frequencies(freq_dim):
    """Frequencies 10000^(-i / (freq_dim/2)) of the timestep sinusoid, NumPy float64 [freq_dim / 2]."""
    half = freq_dim // 2
    return 10000.0 ** (-np.arange(half) / half)
