"""Float8 (e4m3) linears for NVIDIA GPUs, placed where the HiF8 recipe of OSP-Next (arXiv 2605.28691) has its own.

In every block the q, k, v, o projections of self- and cross-attention and both FFN matrices multiply e4m3 codes on the
tensor cores (torch._scaled_mm); everything else stays as it is. Current scaling to the largest e4m3 value, 448:

- "tensor": one scale an activation and one a weight, as the recipe says. An activation needs its largest magnitude
  before the first code can be written, so quantisation takes two passes over memory.
- "row": one scale a token and one an output channel. Not the recipe's, more exact, and one pass: the kernel that makes
  a row quantises it.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tools.torch_reference import fused

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
SCALINGS = ("tensor", "row")


@dataclass(frozen=True)
class Quantised:
    """codes [..., K] e4m3 and their fp32 scale, [] or [..., 1]: the activation is codes * scale, of type `dtype`."""

    codes: torch.Tensor
    scale: torch.Tensor
    dtype: torch.dtype

    def dequantised(self):
        return self.codes.float() * self.scale


def quantised(x, scaling):
    """Quantised x [..., K] with a scale for the tensor or for each row; an all-zero one gets scale 1."""
    x32 = x.float()
    amax = x32.abs().amax() if scaling == "tensor" else x32.abs().amax(-1, keepdim=True)
    factor = torch.where(amax > 0, E4M3_MAX / amax.clamp_min(1e-30), 1.0)
    return Quantised((x32 * factor).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3), 1 / factor, x.dtype)


class Float8Linear(nn.Module):
    """y = x W^T + b with e4m3 x and W, made of a linear layer: codes [out, in], scale [] or [out, 1], bias [out]."""

    def __init__(self, layer, scaling):
        super().__init__()
        weight = quantised(layer.weight.detach(), scaling)
        self.scaling = scaling
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", layer.bias.detach())

    def forward(self, x):
        """Quantised [..., in] -> [..., out] in the dtype of the bias."""
        codes = x.codes.flatten(0, -2)
        scales = (x.scale.flatten(0, -2), self.scale.t()) if self.scaling == "row" else (x.scale, self.scale)
        y = torch._scaled_mm(codes, self.codes.t(), *scales, bias=self.bias, out_dtype=x.dtype, use_fast_accum=True)
        return y.unflatten(0, x.codes.shape[:-1])


class Float8Kernels:
    """The contract of fused.EagerKernels, in which the input of a linear is Quantised. `others` does the rest.

    The eager form states what `TritonFloat8Kernels` computes.
    """

    def __init__(self, others, scaling):
        self.others, self.scaling = others, scaling
        self.update, self.rms_norm, self.rms_norm_rotate = others.update, others.rms_norm, others.rms_norm_rotate

    def norm(self, x_BNC, factor_BC, shift_BC, dtype):
        """Norm and modulation; Quantised, but for the head's fp32."""
        n_BNC = self.others.norm(x_BNC, factor_BC, shift_BC, dtype)
        return n_BNC if dtype == torch.float32 else self.input_of_linear(n_BNC)

    def update_norm(self, x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype):
        x_BNC, n_BNC = self.others.update_norm(x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype)
        return x_BNC, self.input_of_linear(n_BNC)

    def input_of_linear(self, x):
        return quantised(x, self.scaling)

    def linear(self, x, layer):
        return layer(x)

    def linear_gelu(self, x, layer):
        return quantised(F.gelu(layer(x), approximate="tanh"), self.scaling)


class TritonFloat8Kernels(Float8Kernels):
    """Quantisation inside the kernel that makes the activation, as far as the scaling allows."""

    def __init__(self, others, scaling):
        from tools.torch_reference import triton_float8

        super().__init__(others, scaling)
        self._triton = triton_float8
        self._quantise = triton_float8.quantise_rows if scaling == "row" else triton_float8.quantise_tensor

    def norm(self, x_BNC, factor_BC, shift_BC, dtype):
        if dtype == torch.float32:
            return self.others.norm(x_BNC, factor_BC, shift_BC, dtype)
        return self.update_norm(x_BNC, None, None, factor_BC, shift_BC, dtype)[1]

    def update_norm(self, x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype):
        x_BNC, codes, scale = self._triton.update_norm_quantise(x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype,
                                                                self.scaling)
        return x_BNC, Quantised(codes, scale, dtype)

    def input_of_linear(self, x):
        return Quantised(*self._quantise(x.contiguous()), x.dtype)

    def linear_gelu(self, x, layer):
        return Quantised(*self._quantise(layer(x), gelu=True), x.dtype)


@functools.cache
def kernels(name, scaling):
    """Kernels `name` of fused.IMPLEMENTATIONS with quantised inputs of linears. Raises ValueError for other names."""
    if scaling not in SCALINGS:
        raise ValueError(f"scaling is {scaling!r}; valid: {', '.join(SCALINGS)}")
    return (TritonFloat8Kernels if name == "triton" else Float8Kernels)(fused.kernels(name), scaling)


def block_linears(model):
    """(parent, name, layer) of every linear that the recipe quantises."""
    for block in model.blocks:
        for attention in (block.self_attn, block.cross_attn):
            yield from ((attention, name, getattr(attention, name)) for name in "qkvo")
        yield from ((block.ffn, name, getattr(block.ffn, name)) for name in ("0", "2"))


def quantise(model, scaling, kernels_name):
    """Replaces the block linears of a PackedDiT and its kernels, in place; the layers it had stay untouched.

    Raises ValueError for a model in fp32: by that dtype the norm of the head is told from those of the blocks.
    """
    if model.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"linears of the model are {model.dtype}; valid: torch.bfloat16, torch.float16")
    for parent, name, layer in list(block_linears(model)):
        setattr(parent, name, Float8Linear(layer, scaling))
    model.kernels = kernels(kernels_name, scaling)
    return model


def error_against_bf16(base, model, inputs):
    """||out - out_base|| / ||out_base|| of the 8-bit `model` against `base`, the model it was made of."""
    same_layout = base.with_layout(model.config.skiparse, model.config.num_full_blocks)
    same_layout.attention, same_layout.sequence = model.attention, model.sequence
    same_layout.kernels = model.kernels.others
    with torch.inference_mode():
        expected = same_layout(*inputs).double()
        return ((model(*inputs).double() - expected).norm() / expected.norm()).item()
