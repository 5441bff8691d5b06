"""The fused kernels with 8-bit inputs of linears: contract, and its form on NVIDIA GPUs. Scalings: float8.py."""

import functools
from dataclasses import replace

import torch
import torch.nn.functional as F

from tools.torch_reference.gpu import fused
from tools.torch_reference.gpu.float8 import (
    E4M3,
    SCALINGS,
    Quantised,
    factor_of,
    norm_bounds,
    quantised,
    sampled_amax,
    to_codes,
)


class Float8Kernels:
    """The contract of fused.EagerKernels, in which the input of a linear is Quantised. `others` does the rest.

    The eager form states what `TritonFloat8Kernels` computes: what is quantised in the pass that makes it, or made
    again in each pass, is never rounded to the activations' dtype: the GELU and, unless the scaling is "tensor", the
    norm. With that scaling the norm is written in that dtype between the two passes.
    """

    def __init__(self, others, scaling):
        self.others, self.scaling = others, scaling

    def __getattr__(self, name):
        return getattr(self.others, name)

    def norm(self, x_BNC, factor_BC, shift_BC, dtype):
        """Norm and modulation; Quantised, but for the head's fp32."""
        if dtype == torch.float32:
            return self.others.norm(x_BNC, factor_BC, shift_BC, dtype)
        n_BNC = self.others.norm(x_BNC, factor_BC, shift_BC, self._norm_dtype(dtype))
        return self._quantised_norm(n_BNC, factor_BC, shift_BC, dtype)

    def update_norm(self, x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype, gather_N=None, residual_dtype=None):
        x_BNC, n_BNC = self.others.update_norm(x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, self._norm_dtype(dtype),
                                               gather_N, residual_dtype)
        return x_BNC, self._quantised_norm(n_BNC, factor_BC, shift_BC, dtype)

    def _norm_dtype(self, dtype):
        return torch.float32 if self.scaling in ("bound", "row") else dtype

    def _quantised_norm(self, n_BNC, factor_BC, shift_BC, dtype):
        bounds = norm_bounds(factor_BC, shift_BC) if self.scaling == "bound" else (None, None)
        return replace(quantised(n_BNC, self.scaling, *bounds), dtype=dtype)

    def input_of_linear(self, x):
        """Quantised activation of which nothing is known: current scaling, whatever the scaling."""
        length = x.float().norm(dim=-1).amax() if self.scaling == "bound" else None
        return quantised(x, self.scaling, length=length)

    def _input_of_parts(self, parts):
        """Quantised outputs [B, n, K] of attention, one after the other."""
        amax = sampled_amax(parts) if self.scaling == "bound" else None
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return quantised(x, self.scaling, amax)

    def linear(self, x, layer, bias=None):
        return layer(x, bias)

    def value(self, x, layer, num_heads, common_mean=None):
        return self.linear(x, layer).unflatten(-1, (num_heads, -1)), None, None

    def linear_of_parts(self, parts, layer, shift_C=None):
        return self.linear(self._input_of_parts(parts), layer, self.shifted_bias(layer, shift_C))

    add_linear = fused.EagerKernels.add_linear
    add_linear_of_parts = fused.EagerKernels.add_linear_of_parts

    def of_constant(self, layer, vector):
        return layer.of_constant(vector)

    def mean_of_input(self, x):
        return x.dequantised().mean((0, 1))

    def shifted_bias(self, layer, shift_C):
        return fused.EagerKernels.shifted_bias(self, layer, shift_C)

    def linear_gelu(self, x, layer):
        if self.scaling == "bound":
            hidden = F.gelu(layer.exact(x), approximate="tanh")
            return replace(quantised(hidden, self.scaling, layer.bound(x)), dtype=x.dtype)
        y = self.linear(x, layer)
        return replace(quantised(F.gelu(y.float(), approximate="tanh"), self.scaling), dtype=y.dtype)

    def linear_codes(self, x, layer, bias=None):
        """`linear` as e4m3 with a scale a tensor that is known before: Quantised. None where there is no bound."""
        if self.scaling != "bound" or x.length is None:
            return None
        factor = factor_of(layer.bound(x, bias))
        return Quantised(to_codes(layer.exact(x, bias), factor), 1 / factor, x.dtype)


class TritonFloat8Kernels(Float8Kernels):
    """Quantisation inside the kernel that makes the activation, as far as the scaling allows."""

    def __init__(self, others, scaling):
        from tools.torch_reference.gpu import triton_float8

        super().__init__(others, scaling)
        self._triton = triton_float8

    def norm(self, x_BNC, factor_BC, shift_BC, dtype):
        if dtype == torch.float32:
            return self.others.norm(x_BNC, factor_BC, shift_BC, dtype)
        return self.update_norm(x_BNC, None, None, factor_BC, shift_BC, dtype)[1]

    def update_norm(self, x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype, gather_N=None, residual_dtype=None):
        x_BNC, codes, scale, length = self._triton.update_norm_quantise(
            x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype, self.scaling, gather_N, residual_dtype)
        return x_BNC, Quantised(codes, scale, dtype, length)

    def input_of_linear(self, x):
        if self.scaling == "row":
            return Quantised(*self._triton.quantise_rows(x.contiguous()), x.dtype)
        length = x.float().norm(dim=-1).amax() if self.scaling == "bound" else None
        return Quantised(*self._triton.quantise_tensor([x.contiguous()]), x.dtype, length)

    def _input_of_parts(self, parts):
        dtype = parts[0].dtype
        if self.scaling == "row" or (len(parts) > 1 and parts[0].shape[0] > 1):
            parts = [parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)]
        if self.scaling == "row":
            return Quantised(*self._triton.quantise_rows(parts[0].contiguous()), dtype)
        parts = [part.contiguous() for part in parts]
        amax = self._triton.sampled_amax(parts) if self.scaling == "bound" else None
        return Quantised(*self._triton.quantise_tensor(parts, amax=amax), dtype)

    def linear(self, x, layer, bias=None):
        if not (x.codes.is_cuda and layer.scale.dim() == 0):
            return layer(x, bias)
        return self._product(x, layer, bias, dtype=x.dtype)

    def add_linear(self, x_BNC, gate_BC, n, layer):
        return self._add(x_BNC, gate_BC, n, layer, layer.bias)

    def add_linear_of_parts(self, x_BNC, gate_BC, parts, layer, shift_C=None):
        bias = layer.bias if shift_C is None else self.shifted_bias(layer, shift_C)
        return self._add(x_BNC, gate_BC, self._input_of_parts(parts), layer, bias)

    def _add(self, x_BNC, gate_BC, n, layer, bias):
        """The product adds to the stream itself, but with a gate: rows of codes have no factor of their own."""
        adds = gate_BC is None and x_BNC.dtype == torch.float32 and n.codes.is_cuda and layer.scale.dim() == 0
        if not (adds and n.codes.dtype == E4M3):
            return x_BNC, (self.linear(n, layer, bias), gate_BC)
        self._product(n, layer, bias, out=x_BNC, adds=True)
        return x_BNC, None

    def of_constant(self, layer, vector):
        if layer.codes.dtype != E4M3:
            return layer.of_constant(vector)
        return self._triton.times_vector(layer.codes, vector) * layer.scale.flatten()

    def mean_of_input(self, x):
        if x.scale.dim():
            return super().mean_of_input(x)
        return self._triton.sum_of_rows(x.codes) * (x.scale / x.codes[..., 0].numel())

    def linear_gelu(self, x, layer):
        if self.scaling == "bound" and x.codes.is_cuda:
            return self._codes(x, layer, gelu=True)
        if self.scaling == "bound":
            return super().linear_gelu(x, layer)
        y = self.linear(x, layer)
        if self.scaling == "row":
            return Quantised(*self._triton.quantise_rows(y, gelu=True), x.dtype)
        return Quantised(*self._triton.quantise_tensor([y], gelu=True), x.dtype)

    def linear_codes(self, x, layer, bias=None):
        if self.scaling == "bound" and x.length is not None and x.codes.is_cuda:
            return self._codes(x, layer, bias)
        return super().linear_codes(x, layer, bias)

    def _codes(self, x, layer, bias=None, gelu=False):
        """The product rounds its result to e4m3 itself."""
        factor = factor_of(layer.bound(x, bias))
        return Quantised(self._product(x, layer, bias, gelu=gelu, scale_y=factor, dtype=E4M3), 1 / factor, x.dtype)

    @staticmethod
    def _product(x, layer, bias, **arguments):
        from tools.torch_reference.gpu import cublas_lt

        return cublas_lt.product(x.codes, layer.codes, layer.bias if bias is None else bias, scale_x=x.scale,
                                 scale_weight=layer.scale, **arguments)


@functools.cache
def kernels(name, scaling):
    """Kernels `name` of fused.IMPLEMENTATIONS with quantised inputs of linears. Raises ValueError for other names."""
    if scaling not in SCALINGS:
        raise ValueError(f"scaling is {scaling!r}; valid: {', '.join(SCALINGS)}")
    by_hand = name == "triton" and scaling != "hif8"
    return (TritonFloat8Kernels if by_hand else Float8Kernels)(fused.kernels(name), scaling)
