"""OSP-Next's HiFloat8 recipe (arXiv 2605.28691, format arXiv 2409.16626) for torch_reference.dit.

Written independently of ospnext_ms.quant: numbers are rounded by integer operations on their bits, the layer keeps the
quantised operands of its forward pass, and attention gets q, k and v as they are after dequantisation.

    model = load(build(config), path)        config.quant and config.quant_attention say what is quantised

`Refinements` are changes of the recipe that cost nothing, or nearly so, tried in tools.experiments.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from ospnext_ms.models.config import QuantConfig
from tools.torch_reference.dit import Attention, OSPNextDiT

MANTISSA = 23
EXPONENT_BIAS = 127
INFINITY_BITS = 0x7F800000
# The bits of 2^-23, 2^-22 and 40960: where numbers become zero, where they stop doing so, and where infinite.
ZERO_BELOW, SMALLEST, INFINITE_FROM = 0x34000000, 0x34800000, 0x47200000
MAX_SCALE = 2.0**126


def round_to_hif8(x):
    """Nearest HiF8 number of every fp32 number, ties away from zero; fp32 of the same shape."""
    bits = x.contiguous().view(torch.int32)
    sign, magnitude = bits & -0x80000000, bits & 0x7FFFFFFF
    distance = ((magnitude >> MANTISSA) - EXPONENT_BIAS).abs()
    kept = (distance <= 3).int() + (distance <= 7).int() + (distance <= 15).int()
    dropped = MANTISSA - kept
    # A carry out of the mantissa moves on into the exponent, as it should.
    rounded = (magnitude + (1 << (dropped - 1))) >> dropped << dropped
    rounded = torch.where(magnitude < SMALLEST, SMALLEST, rounded)
    rounded = torch.where(magnitude < ZERO_BELOW, 0, rounded)
    rounded = torch.where(magnitude >= INFINITE_FROM, INFINITY_BITS, rounded)
    rounded = torch.where(magnitude > INFINITY_BITS, magnitude, rounded)
    # HiF8 has one zero.
    return torch.where(rounded == 0, 0, rounded | sign).view(torch.float32)


@cache
def _rounded_halves(device):
    """What round_to_hif8 makes of every number with nothing in its lower 16 bits, by the upper 16: fp32 [65536]."""
    return round_to_hif8((torch.arange(65536, dtype=torch.int32, device=device) << 16).view(torch.float32))


def round_by_table(x):
    """round_to_hif8 of numbers that are no NaN, in a fifth of the passes: it looks at no bit below the 16th."""
    halves = (x.contiguous().view(torch.int32) >> 16) & 0xFFFF
    return _rounded_halves(x.device).index_select(0, halves.flatten()).view_as(x)


def quantise(x, scale_max, dim=None):
    """(HiF8 numbers fp32, scale fp32): x * scale rounded, where scale brings the largest |x| to `scale_max`.

    The scale is one number, [], or with `dim` one for all that differ in these dimensions only, which it keeps as 1.
    Raises ValueError where x is not finite; while a CUDA graph is recorded everything computed from it is NaN instead.
    """
    x = x.float()
    amax = x.new_zeros(()) if not x.numel() else x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    recording = amax.is_cuda and torch.cuda.is_current_stream_capturing()
    if not recording and not amax.isfinite().all():
        raise ValueError(f"the largest absolute value is {amax.max().item()}; HiF8 scaling needs finite numbers")
    scale = torch.where(amax > 0, (torch.full_like(amax, scale_max) / amax).clamp_max(MAX_SCALE), 1.0)
    return round_by_table(x * scale), scale


class _Product(torch.autograd.Function):
    """x w^T with quantised operands, and with the quantised gradient in the backward pass."""

    @staticmethod
    def forward(x, weight, config):
        x8, x_scale = quantise(x, config.scale_max_forward)
        w8, w_scale = quantise(weight, config.scale_max_forward)
        return (x8 @ w8.t() * (1 / x_scale * (1 / w_scale))).to(x.dtype), x8, x_scale, w8, w_scale

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_backward(*output[1:])
        context.mark_non_differentiable(*output[1:])
        context.config = inputs[2]
        context.dtypes = inputs[0].dtype, inputs[1].dtype

    @staticmethod
    def backward(context, dy, *_):
        x8, x_scale, w8, w_scale = context.saved_tensors
        g8, g_scale = quantise(dy, context.config.scale_max_backward)
        dx = g8 @ w8 * (1 / g_scale * (1 / w_scale))
        dw = g8.t() @ x8 * (1 / g_scale * (1 / x_scale))
        return dx.to(context.dtypes[0]), dw.to(context.dtypes[1]), None


class HiF8Linear(nn.Linear):
    """nn.Linear with a quantised product. `config`: QuantConfig, the paper's unless set otherwise."""

    config = QuantConfig()

    def forward(self, x):
        y = _Product.apply(x.flatten(0, -2), self.weight, self.config)[0].unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


class _Dequantised(torch.autograd.Function):
    """x through HiF8 and back; the gradient passes straight through."""

    @staticmethod
    def forward(context, x, scale_max, dim):
        x8, scale = quantise(x, scale_max, dim)
        return (x8 / scale).to(x.dtype)

    @staticmethod
    def backward(context, dy):
        return dy, None, None


@dataclass(frozen=True)
class Refinements:
    """What may be added to the recipe.

    `centre_keys`: k less its mean over the tokens of the call, which no softmax sees: in real arithmetic neither the
    output nor a gradient changes. `centre_values`: v likewise, the mean being added to the output. `head_scales`: one
    scale for each head of q, k and v. `plain_ends`: so many blocks at either end of the network are not quantised.
    """

    centre_keys: bool = False
    centre_values: bool = False
    head_scales: bool = False
    plain_ends: int = 0


def hif8_attention(scale_max, refinements=Refinements()):  # noqa: B008  (it is frozen)
    """F.scaled_dot_product_attention with quantised q, k and v [B, H, N, D].

    Raises ValueError with a mask: padding would be scaled too.
    """

    def attend(q, k, v, attn_mask=None):
        if attn_mask is not None:
            raise ValueError("the HiF8 reference has no padding: both sides of the grid must be divisible by the "
                             "square of the sparse ratio")
        # The gradient needs no path through the mean either: those of all keys of a softmax add up to zero.
        if refinements.centre_keys:
            k = k - k.detach().mean(dim=-2, keepdim=True)
        centre = v.detach().mean(dim=-2, keepdim=True) if refinements.centre_values else None
        if centre is not None:
            v = v - centre
        dim = (-4, -2, -1) if refinements.head_scales else None
        out = F.scaled_dot_product_attention(*(_Dequantised.apply(x, scale_max, dim) for x in (q, k, v)))
        return out if centre is None else out + centre

    return attend


def set_arithmetic(model, config, refinements=Refinements()):  # noqa: B008
    """Makes an OSPNextDiT compute as a DiTConfig says: what is quantised, and in which form. Returns the model.

    Raises ValueError where the configuration asks for a device's own HiF8.
    """
    if config.quant_config.backend == "native":
        raise ValueError("quant_config.backend is 'native', which PyTorch has not; valid: 'auto', 'emulate'")
    refinements = replace(refinements, centre_keys=refinements.centre_keys or config.quant_config.centre_keys,
                          plain_ends=max(refinements.plain_ends, config.quant_config.plain_ends))
    last = len(model.blocks) - refinements.plain_ends
    for i, block in enumerate(model.blocks):
        inside = refinements.plain_ends <= i < last
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                layer.__class__, layer.config = (HiF8Linear if config.quant and inside else nn.Linear,
                                                 config.quant_config)
            elif isinstance(layer, Attention):
                layer.attend = (hif8_attention(config.quant_config.scale_max_forward, refinements)
                                if config.quant_attention and inside else F.scaled_dot_product_attention)
    return model


def build(config, refinements=Refinements()):  # noqa: B008
    """The OSPNextDiT of a DiTConfig that has quant, quant_attention, both or neither. Raises as set_arithmetic."""
    model = OSPNextDiT(replace(config, quant=None, quant_attention=None, quant_config=QuantConfig()))
    return set_arithmetic(model, config, refinements)
