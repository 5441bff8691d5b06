"""8-bit operands of attention: q, k and v as codes with a scale a head or a tensor.

Where the HiF8 recipe of OSP-Next (arXiv 2605.28691) has them: q and k after norm and rotation, v as projected. B batch,
N tokens, C width, H heads, D head width. `AttentionRecipe` says how the codes are made; `AttentionKernels` states it in
PyTorch operators, `TritonAttentionKernels` does it inside the kernel that normalises and rotates.
"""

import functools
from dataclasses import dataclass, replace

import torch

from tools.torch_reference import hif8
from tools.torch_reference.dit import NORM_EPS
from tools.torch_reference.gpu.float8 import HIF8_MAX, factor_of, to_codes

SCALES = ("bound", "head", "tensor")
# The mean of the keys is that of every so many tokens: softmax is exact for any vector taken off all keys of a call.
KEY_STRIDE = 64


@dataclass(frozen=True)
class AttentionRecipe:
    """How q, k and v become 8-bit codes.

    Args:
        number_format: "e4m3", or "hif8": HiF8 numbers held in bf16.
        scale: "bound", one a head of q and k from the weights of their RMS norm, whose output of width C is nowhere
            larger than sqrt(C) times them; of v one a tensor from the bound of its projection, where that is known.
            "head" or "tensor": from the largest magnitude of the head or the tensor.
        centre_keys: keys less their mean over tokens. No probability changes, but what is rounded gets smaller.
        centre_values: values less their mean, which is added again after attention, as probabilities sum to one. Hopper
            adds float8 products up with 13 bits and truncates: over N tokens with a common part in v the sum falls
            short, by half at 75,600 (checks.py measures it). It takes the mean of all tokens: what an estimate from a
            few leaves is much where attention averages over many. Only in self-attention, where N is large.
        hadamard: q and k of a head times the same orthogonal matrix, which spreads a large channel over all.

    Raises ValueError for another format or scale, or for HiF8 with the scale "bound": its precision depends on
    magnitude.
    """

    number_format: str = "e4m3"
    scale: str = "bound"
    centre_keys: bool = True
    centre_values: bool = True
    hadamard: bool = False

    def __post_init__(self):
        if self.number_format not in ("e4m3", "hif8") or self.scale not in SCALES:
            raise ValueError(f"number_format is {self.number_format!r}, scale {self.scale!r}; valid: 'e4m3', 'hif8' "
                             f"and {', '.join(SCALES)}")
        if self.number_format == "hif8" and self.scale == "bound":
            raise ValueError("scale is 'bound' for 'hif8'; valid: head, tensor")


# OSP-Next's own.
HIF8_RECIPE = AttentionRecipe("hif8", "tensor", centre_keys=False, centre_values=False)


def normed_and_rotated(x_BNC, weight_C, cos_Nd, sin_Nd):
    """RMS norm over the full width and, with tables, rotation, fp32: what fused.EagerKernels rounds."""
    x = x_BNC.float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS) * weight_C.float()
    if cos_Nd is None:
        return x
    even, odd = x.unflatten(-1, (-1, cos_Nd.shape[-1], 2)).unbind(-1)
    cos, sin = cos_Nd[:, None], sin_Nd[:, None]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-3)


def bound_of_heads(weight_C, num_heads, centred):
    """fp32 [H]: no entry of a normed (and rotated) head is larger. An entry less a mean of others is at most twice."""
    bound = weight_C.shape[0] ** 0.5 * weight_C.float().unflatten(0, (num_heads, -1)).abs().amax(1)
    return 2 * bound if centred else bound


def hadamard_matrix(width, device):
    """Orthogonal [D, D] of entries +-D^-1/2, D a power of two."""
    matrix = torch.ones(1, 1, device=device)
    while matrix.shape[0] < width:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix * width**-0.5


def codes_of_heads(x_BNHD, recipe, bound_H=None):
    """(codes [B, N, H, D], scale fp32 [H]) of fp32 numbers by a recipe; `bound_H` for the scale "bound"."""
    amax = bound_H
    if amax is None:
        amax = x_BNHD.abs().amax((0, 1, 3))
        if recipe.scale == "tensor":
            amax = amax.amax().expand_as(amax)
    if recipe.number_format == "hif8":
        factor = torch.where(amax > 0, HIF8_MAX / amax.clamp_min(1e-30), 1.0)
        return hif8.round_to_hif8(x_BNHD * factor[:, None]).bfloat16(), 1 / factor
    factor = factor_of(amax)
    return to_codes(x_BNHD, factor[:, None]), 1 / factor


class AttentionKernels:
    """The contract of fused.EagerKernels with 8-bit operands of attention. `others` does everything else."""

    def __init__(self, others, recipe):
        self.others, self.recipe = others, recipe

    def __getattr__(self, name):
        return getattr(self.others, name)

    def query(self, x_BNC, weight_C, tables, num_heads):
        """Norm, rotation and codes: (codes [B, N, H, D], scale [H])."""
        return self._codes(normed_and_rotated(x_BNC, weight_C, *tables), weight_C, num_heads, centred=False)

    def key(self, x_BNC, weight_C, tables, num_heads, common_mean):
        """As `query`. `common_mean`: mean over this process's tokens -> mean over those of the attention call."""
        k_BNC = normed_and_rotated(x_BNC, weight_C, *tables)
        if self.recipe.centre_keys:
            sampled = tuple(None if table is None else table[::KEY_STRIDE] for table in tables)
            mean_BC = normed_and_rotated(x_BNC[:, ::KEY_STRIDE], weight_C, *sampled).mean(1)
            k_BNC = k_BNC - common_mean(mean_BC)[:, None]
        return self._codes(k_BNC, weight_C, num_heads, centred=self.recipe.centre_keys)

    def _codes(self, x_BNC, weight_C, num_heads, centred):
        x_BNHD = x_BNC.unflatten(-1, (num_heads, -1))
        if self.recipe.hadamard:
            x_BNHD = x_BNHD @ hadamard_matrix(x_BNHD.shape[-1], x_BNHD.device)
        bound_H = None
        if self.recipe.scale == "bound":
            # A rotated head is at most sqrt(D) larger in one entry; nobody needs that exactly.
            spread = x_BNHD.shape[-1] ** 0.5 if self.recipe.hadamard else 1
            bound_H = spread * bound_of_heads(weight_C, num_heads, centred)
        return codes_of_heads(x_BNHD, self.recipe, bound_H)

    def value(self, x, layer, num_heads, common_mean=None):
        """Projection and codes; in e4m3 from a bound where `others` know one, else current scaling.

        The mean leaves with the bias; without `common_mean` (as in `key`) values are not centred.
        """
        bias = mean_C = None
        if self.recipe.centre_values and common_mean is not None:
            mean_C = self.others.of_constant(layer, self.others.mean_of_input(x)) + layer.bias
            bias = (layer.bias - common_mean(mean_C)).to(layer.bias.dtype)
            mean_C = layer.bias.float() - bias.float()
        known = getattr(self.others, "linear_codes", None)
        v = known(x, layer, bias) if known and self.recipe.scale == "bound" else None
        if v is not None:
            return v.codes.unflatten(-1, (num_heads, -1)), v.scale.expand(num_heads), mean_C
        v_BNHD = self.others.linear(x, layer, bias).unflatten(-1, (num_heads, -1))
        return *self._value_codes(v_BNHD), mean_C

    def _value_codes(self, v_BNHD):
        recipe = replace(self.recipe, scale="tensor") if self.recipe.scale == "bound" else self.recipe
        return codes_of_heads(v_BNHD.float(), recipe)


class TritonAttentionKernels(AttentionKernels):
    """Codes of q and k in the kernel that normalises and rotates; e4m3 without the Hadamard matrix."""

    def __init__(self, others, recipe):
        from tools.torch_reference.gpu import triton_attention, triton_float8

        super().__init__(others, recipe)
        self._triton, self._quantise_tensor = triton_attention, triton_float8.quantise_tensor

    def query(self, x_BNC, weight_C, tables, num_heads):
        return self._rotate_quantise(x_BNC, weight_C, tables, num_heads)

    def key(self, x_BNC, weight_C, tables, num_heads, common_mean):
        mean_BC = None
        if self.recipe.centre_keys:
            mean_BC = common_mean(self._triton.mean_of_rotated(x_BNC, weight_C, tables, num_heads, KEY_STRIDE))
        return self._rotate_quantise(x_BNC, weight_C, tables, num_heads, mean_BC)

    def _rotate_quantise(self, x_BNC, weight_C, tables, num_heads, mean_BC=None):
        bound_H = None
        if self.recipe.scale == "bound":
            bound_H = bound_of_heads(weight_C, num_heads, mean_BC is not None)
        return self._triton.rotate_quantise(x_BNC, weight_C, tables, num_heads, bound_H, self.recipe.scale == "head",
                                            mean_BC)

    def _value_codes(self, v_BNHD):
        if self.recipe.scale == "head":
            return super()._value_codes(v_BNHD)
        codes, scale = self._quantise_tensor([v_BNHD])
        return codes, scale.expand(v_BNHD.shape[2])


@functools.cache
def kernels(name, recipe, others):
    """`others` with 8-bit operands of attention, by hand where `name` is "triton" and the recipe allows it."""
    by_hand = name == "triton" and recipe.number_format == "e4m3" and not recipe.hadamard
    return (TritonAttentionKernels if by_hand else AttentionKernels)(others, recipe)
