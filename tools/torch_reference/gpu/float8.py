"""Float8 (e4m3) linears for NVIDIA GPUs, placed where the HiF8 recipe of OSP-Next (arXiv 2605.28691) has its own.

In every block the q, k, v, o projections of self- and cross-attention and both FFN matrices multiply e4m3 codes on the
tensor cores; everything else stays as it is. How an activation gets its scale:

- "bound": one scale a tensor from a bound on its magnitude that is known before the kernel runs (see `bounds`), so
  that every activation is quantised in the pass that makes it. e4m3 is a floating format: a scale too small by 2^8
  costs nothing but its smallest numbers. An attention output, of which nothing is known, is scaled by SAMPLE_MARGIN
  times the largest magnitude of every SAMPLE_STRIDE-th token; a number beyond that saturates.
- "tensor": one scale a tensor from its largest magnitude, current scaling as the recipe says. It is known only after
  the tensor is, so quantisation takes two passes over memory.
- "row": current scaling with one scale a token and one an output channel. Not the recipe's, more exact, and one pass.
- "hif8": the recipe itself, emulated: numbers of HiF8 (hif8.py), which bf16 holds exactly, with one scale a tensor, in
  bf16 products. It shows the recipe's own error; its time says nothing.

Weights have current scaling always.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ospnext_ms.models.config import QuantConfig
from tools.torch_reference import hif8

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
E4M3_SCALINGS = ("bound", "tensor", "row")
SCALINGS = (*E4M3_SCALINGS, "hif8")
HIF8_MAX = QuantConfig().scale_max_forward
# Rounding to HiF8 is integer arithmetic on fp32: a part of a tensor at a time.
HIF8_ROWS = 8192
SAMPLE_STRIDE, SAMPLE_MARGIN = 16, 16.0
# Codes exceed what they stand for by 2^-4 at most.
ROUNDED = 1 + 2.0**-4


@dataclass(frozen=True)
class Quantised:
    """codes [..., K], e4m3 or HiF8 numbers in bf16, and their fp32 scale, [] or [..., 1]: the activation is
    codes * scale, of type `dtype`. `length`: fp32 [], no token's vector is longer, where that is known.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    dtype: torch.dtype
    length: torch.Tensor | None = None

    def dequantised(self):
        return self.codes.float() * self.scale


def to_codes(x32, factor):
    """fp32 numbers times a factor, saturated, as e4m3."""
    return (x32 * factor).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def factor_of(amax):
    """What brings the largest magnitude to E4M3_MAX; 1 where everything is zero."""
    return torch.where(amax > 0, E4M3_MAX / amax.clamp_min(1e-30), 1.0)


def quantised(x, scaling, amax=None, length=None):
    """Quantised x [..., K] with a scale for the tensor or for each row; an all-zero one gets scale 1.

    `amax` [] fp32 is a bound to use instead of the largest magnitude.
    """
    if scaling == "hif8":
        return _hif8_numbers(x)
    x32 = x.float()
    if amax is None:
        amax = x32.abs().amax(-1, keepdim=True) if scaling == "row" else x32.abs().amax()
    factor = factor_of(amax)
    return Quantised(to_codes(x32, factor), 1 / factor, x.dtype, length)


def norm_bounds(factor_BC, shift_BC):
    """(largest magnitude, greatest length) of any LayerNorm(x) * factor + shift, fp32 []: a normed vector of width C
    has length sqrt(C), so no entry of it is larger than that.
    """
    root = factor_BC.shape[-1] ** 0.5
    amax = (root * factor_BC.abs() + shift_BC.abs()).amax()
    return amax, root * factor_BC.abs().amax() + shift_BC.norm(dim=-1).amax()


def sampled_amax(parts):
    """SAMPLE_MARGIN times the largest magnitude of every SAMPLE_STRIDE-th row of tensors [..., K], fp32 []."""
    largest = [part.flatten(0, -2)[::SAMPLE_STRIDE].abs().amax().float() for part in parts if part.numel()]
    return SAMPLE_MARGIN * torch.stack(largest).amax()


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

    Made of a linear layer and, where its weight is stored in 8 bits already, that weight (Quantised). `row_length` and
    `largest_bias`, fp32 []: with a bound on the length of x they bound y.
    """

    def __init__(self, layer, scaling, weight=None):
        super().__init__()
        weight = weight or quantised(layer.weight.detach(), "tensor" if scaling == "bound" else scaling)
        self.scaling = scaling
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", layer.bias.detach())
        if scaling == "bound":
            self.register_buffer("row_length", weight.scale * torch.stack([
                rows.float().norm(dim=1).amax() for rows in weight.codes.split(HIF8_ROWS)]).amax())
            self.register_buffer("largest_bias", self.bias.float().abs().amax())

    def forward(self, x, bias=None):
        """Quantised [..., in] -> [..., out] in the dtype of the bias, which may be another than the layer's."""
        bias = self.bias if bias is None else bias
        codes = x.codes.flatten(0, -2)
        if self.scaling == "hif8":
            # Scaled after the product, so bf16 rounds the result twice.
            y = F.linear(codes, self.codes).float().mul_(x.scale * self.scale).add_(bias)
            return y.to(x.dtype).unflatten(0, x.codes.shape[:-1])
        scales = (x.scale.flatten(0, -2), self.scale.t()) if self.scaling == "row" else (x.scale, self.scale)
        y = torch._scaled_mm(codes, self.codes.t(), *scales, bias=bias, out_dtype=x.dtype, use_fast_accum=True)
        return y.unflatten(0, x.codes.shape[:-1])

    def exact(self, x, bias=None):
        """`forward` in fp32 throughout: what a product that rounds its own result starts from."""
        y = F.linear(x.codes.float(), self.codes.float()) * (x.scale * self.scale)
        return y + (self.bias if bias is None else bias).float()

    def bound(self, x, bias=None):
        """fp32 []: no entry of the output for an input of x.length is larger, and hardly any is near."""
        largest = self.largest_bias if bias is None else bias.float().abs().amax()
        return x.length * (ROUNDED * self.row_length) + largest

    def of_constant(self, vector):
        """fp32 [out]: the product of W with one vector fp32 [in], not quantised."""
        return F.linear(vector, self.codes.float()) * self.scale.flatten()
