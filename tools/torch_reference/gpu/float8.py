"""Float8 (e4m3) linears for NVIDIA GPUs, placed where the HiF8 recipe of OSP-Next (arXiv 2605.28691) has its own.

In every block the q, k, v, o projections of self- and cross-attention and both FFN matrices multiply e4m3 codes on the
tensor cores (torch._scaled_mm); everything else stays as it is. Current scaling to the largest e4m3 value, 448:

- "tensor": one scale an activation and one a weight, as the recipe says. An activation needs its largest magnitude
  before the first code can be written, so quantisation takes two passes over memory.
- "row": one scale a token and one an output channel. Not the recipe's, more exact, and one pass: the kernel that makes
  a row quantises it.
- "hif8": the recipe itself, emulated: numbers of HiF8 (hif8.py), which bf16 holds exactly, with one scale a tensor, in
  bf16 products. It shows the recipe's own error; its time says nothing.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from ospnext_ms.hif8_format import decode
from ospnext_ms.models.config import QuantConfig
from ospnext_ms.storage.hif8_weights import SCALE_SUFFIX
from tools.torch_reference import hif8
from tools.torch_reference.gpu import fused

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
E4M3_SCALINGS = ("tensor", "row")
SCALINGS = (*E4M3_SCALINGS, "hif8")
HIF8_MAX = QuantConfig().scale_max_forward
# Rounding to HiF8 is integer arithmetic on fp32: a part of a tensor at a time.
HIF8_ROWS = 8192


@dataclass(frozen=True)
class Quantised:
    """codes [..., K], e4m3 or HiF8 numbers in bf16, and their fp32 scale, [] or [..., 1]: the activation is
    codes * scale, of type `dtype`.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    dtype: torch.dtype

    def dequantised(self):
        return self.codes.float() * self.scale


def quantised(x, scaling):
    """Quantised x [..., K] with a scale for the tensor or for each row; an all-zero one gets scale 1."""
    if scaling == "hif8":
        return _hif8_numbers(x)
    x32 = x.float()
    amax = x32.abs().amax() if scaling == "tensor" else x32.abs().amax(-1, keepdim=True)
    factor = torch.where(amax > 0, E4M3_MAX / amax.clamp_min(1e-30), 1.0)
    return Quantised((x32 * factor).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3), 1 / factor, x.dtype)


def _hif8_numbers(x):
    amax = x.abs().amax().float()
    factor = torch.where(amax > 0, HIF8_MAX / amax.clamp_min(1e-30), 1.0)
    rows = x.reshape(-1, x.shape[-1])
    numbers = torch.empty_like(rows, dtype=torch.bfloat16)
    for source, target in zip(rows.split(HIF8_ROWS), numbers.split(HIF8_ROWS), strict=True):
        target.copy_(hif8.round_to_hif8(source.float() * factor))
    return Quantised(numbers.view(x.shape), 1 / factor, x.dtype)


class Float8Linear(nn.Module):
    """y = x W^T + b with quantised x and W: codes [out, in], scale [] or [out, 1], bias [out].

    Made of a linear layer and, where its weight is stored in 8 bits already, that weight (Quantised).
    """

    def __init__(self, layer, scaling, weight=None):
        super().__init__()
        weight = weight or quantised(layer.weight.detach(), scaling)
        self.scaling = scaling
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", layer.bias.detach())

    def forward(self, x):
        """Quantised [..., in] -> [..., out] in the dtype of the bias."""
        codes = x.codes.flatten(0, -2)
        if self.scaling == "hif8":
            # Scaled after the product, so bf16 rounds the result twice.
            y = F.linear(codes, self.codes).float().mul_(x.scale * self.scale).add_(self.bias)
            return y.to(x.dtype).unflatten(0, x.codes.shape[:-1])
        scales = (x.scale.flatten(0, -2), self.scale.t()) if self.scaling == "row" else (x.scale, self.scale)
        y = torch._scaled_mm(codes, self.codes.t(), *scales, bias=self.bias, out_dtype=x.dtype, use_fast_accum=True)
        return y.unflatten(0, x.codes.shape[:-1])


class Float8Kernels:
    """The contract of fused.EagerKernels, in which the input of a linear is Quantised. `others` does the rest.

    The eager form states what `TritonFloat8Kernels` computes: what is quantised in the pass that makes it, or made
    again in each pass, is never rounded to the activations' dtype: the GELU and, with a scale a row, the norm. With a
    scale a tensor the norm is written in that dtype between the two passes.
    """

    def __init__(self, others, scaling):
        self.others, self.scaling = others, scaling
        self.update, self.rms_norm, self.rms_norm_rotate = others.update, others.rms_norm, others.rms_norm_rotate

    def norm(self, x_BNC, factor_BC, shift_BC, dtype):
        """Norm and modulation; Quantised, but for the head's fp32."""
        if dtype == torch.float32:
            return self.others.norm(x_BNC, factor_BC, shift_BC, dtype)
        return self._as(dtype, self.others.norm(x_BNC, factor_BC, shift_BC, self._norm_dtype(dtype)))

    def update_norm(self, x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype, gather_N=None):
        x_BNC, n_BNC = self.others.update_norm(x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, self._norm_dtype(dtype),
                                               gather_N)
        return x_BNC, self._as(dtype, n_BNC)

    def _norm_dtype(self, dtype):
        return torch.float32 if self.scaling == "row" else dtype

    def _as(self, dtype, x):
        return replace(quantised(x, self.scaling), dtype=dtype)

    def input_of_linear(self, x):
        return quantised(x, self.scaling)

    def linear(self, x, layer):
        return layer(x)

    def linear_of_parts(self, parts, layer):
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return layer(self.input_of_linear(x))

    def linear_gelu(self, x, layer):
        y = layer(x)
        return self._as(y.dtype, F.gelu(y.float(), approximate="tanh"))


class TritonFloat8Kernels(Float8Kernels):
    """Quantisation inside the kernel that makes the activation, as far as the scaling allows."""

    def __init__(self, others, scaling):
        from tools.torch_reference.gpu import triton_float8

        super().__init__(others, scaling)
        self._triton = triton_float8
        self._quantise = triton_float8.quantise_rows if scaling == "row" else triton_float8.quantise_tensor

    def norm(self, x_BNC, factor_BC, shift_BC, dtype):
        if dtype == torch.float32:
            return self.others.norm(x_BNC, factor_BC, shift_BC, dtype)
        return self.update_norm(x_BNC, None, None, factor_BC, shift_BC, dtype)[1]

    def update_norm(self, x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype, gather_N=None):
        x_BNC, codes, scale = self._triton.update_norm_quantise(x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype,
                                                                self.scaling, gather_N)
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
    by_hand = name == "triton" and scaling != "hif8"
    return (TritonFloat8Kernels if by_hand else Float8Kernels)(fused.kernels(name), scaling)


def block_linears(model):
    """(parent, name in it, name in the model) of every linear that the recipe quantises."""
    for i, block in enumerate(model.blocks):
        for part, names in (("self_attn", "qkvo"), ("cross_attn", "qkvo"), ("ffn", "02")):
            yield from ((getattr(block, part), name, f"blocks.{i}.{part}.{name}") for name in names)


def quantise(model, scaling, kernels_name, stored=None):
    """Replaces the block linears of a PackedDiT and its kernels, in place; the layers it had stay untouched, and are
    freed one by one where nobody else holds them. `stored` {name: Quantised} are weights that are in 8 bits already.

    Raises ValueError for a model in fp32: by that dtype the norm of the head is told from those of the blocks.
    """
    if model.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"linears of the model are {model.dtype}; valid: torch.bfloat16, torch.float16")
    for parent, name, path in list(block_linears(model)):
        weight = (stored or {}).get(f"{path}.weight")
        setattr(parent, name, Float8Linear(getattr(parent, name), scaling, weight))
    model.kernels = kernels(kernels_name, scaling)
    return model


def load_hif8(model, path, scaling, kernels_name):
    """Loads a .safetensors file with HiF8 weights (ospnext_ms.storage.hif8_weights) into a PackedDiT and quantises it.

    The numbers stay those of the file: e4m3 takes them times a power of two, which loses only HiF8's few numbers below
    2^-12 of the largest. Raises ValueError where tensors are missing or left over.
    """
    tensors, stored = load_file(path), {}
    numbers = torch.from_numpy(decode(np.arange(256, dtype=np.uint8)))
    for key in [key for key, tensor in tensors.items() if tensor.dtype == torch.uint8]:
        values, scale = numbers[tensors.pop(key).int()], tensors.pop(key + SCALE_SUFFIX).reshape(())
        place = dict(model.named_parameters())[key].device
        stored[key] = _of_hif8(values.to(place), scale.to(place), scaling, model.dtype)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    wanted = {f"{path}.weight" for _, _, path in block_linears(model)}
    wrong = sorted((set(missing) ^ wanted) | (set(stored) ^ wanted) | set(unexpected))
    if wrong:
        raise ValueError(f"{path} is not this model with its block linears in HiF8; missing or left over: {wrong[:10]}")
    return quantise(model, scaling, kernels_name, stored)


def _of_hif8(values, scale, scaling, dtype):
    """Quantised weight of HiF8 numbers [out, in] fp32 and their scale."""
    if scaling == "hif8":
        return Quantised(values.bfloat16(), scale, dtype)
    amax = values.abs().amax() if scaling == "tensor" else values.abs().amax(-1, keepdim=True)
    factor = torch.where(amax > 0, torch.exp2(torch.floor(torch.log2(E4M3_MAX / amax.clamp_min(1e-30)))), 1.0)
    return Quantised((values * factor).to(E4M3), scale / factor, dtype)
