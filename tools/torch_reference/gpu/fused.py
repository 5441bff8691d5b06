"""The work of a block between its matrix products, behind one contract with three implementations.

B batch, N tokens, C width, H heads, D head width. `EagerKernels` states the contract in PyTorch operators: it runs
anywhere, has gradients and is what the others are compared with. `InductorKernels` compiles each method;
`TritonKernels` are kernels written by hand that touch device memory once, for inference on NVIDIA GPUs.
Everything inside a method is fp32, every result is rounded once. `factor`, `shift`, `gate` [B, C] and norm weights [C]
are fp32.
"""

import functools
import importlib.util

import torch
import torch.nn.functional as F

from tools.torch_reference.dit import NORM_EPS


class EagerKernels:
    """The contract. x is the residual stream [B, N, C], y an update of it; inputs may be overwritten."""

    def norm(self, x_BNC, factor_BC, shift_BC, dtype):
        """LayerNorm(x) * factor + shift, rounded to `dtype`."""
        normed = F.layer_norm(x_BNC.float(), x_BNC.shape[-1:], eps=NORM_EPS)
        return (normed * factor_BC[:, None] + shift_BC[:, None]).to(dtype)

    def update(self, x_BNC, y_BNC, gate_BC=None):
        """x + gate * y in the dtype of x; without a gate x + y."""
        y_BNC = y_BNC.float() if gate_BC is None else y_BNC.float() * gate_BC[:, None]
        return (x_BNC.float() + y_BNC).to(x_BNC.dtype)

    def update_gather(self, x_BNC, y_BNC, gate_BC, gather_N, dtype):
        """update(x, y, gate), without y x itself, in `dtype` with token gather[i] in place i."""
        x_BNC = x_BNC.float() if y_BNC is None else EagerKernels.update(self, x_BNC.float(), y_BNC, gate_BC)
        return x_BNC.index_select(1, gather_N).to(dtype)

    def update_norm(self, x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype, gather_N=None, residual_dtype=None):
        """(update(x, y, gate) in `residual_dtype`, default that of x, norm of that); without y the update is x itself.

        With `gather_N` both have token gather[i] in place i.
        """
        x_BNC = x_BNC.to(residual_dtype or x_BNC.dtype)
        if y_BNC is not None:
            x_BNC = EagerKernels.update(self, x_BNC, y_BNC, gate_BC)
        if gather_N is not None:
            x_BNC = x_BNC.index_select(1, gather_N)
        return x_BNC, EagerKernels.norm(self, x_BNC, factor_BC, shift_BC, dtype)

    def rms_norm(self, x_BNC, weight_C):
        """x / rms(x) * weight over the full width, in the dtype of x."""
        x = x_BNC.float()
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)
        return (normed * weight_C.float()).to(x_BNC.dtype)

    def rms_norm_rotate(self, x_BNC, weight_C, cos_Nd, sin_Nd):
        """RMS norm over the full width, then every head's interleaved pairs (2i, 2i+1) rotated; cos, sin [N, D/2]."""
        x = x_BNC.float()
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS) * weight_C.float()
        pairs = normed.unflatten(-1, (-1, cos_Nd.shape[-1], 2))
        even, odd = pairs.unbind(-1)
        cos, sin = cos_Nd[:, None], sin_Nd[:, None]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-3).to(x_BNC.dtype)

    def query(self, x_BNC, weight_C, tables, num_heads):
        """(q or k for attention [B, N, H, D], its scale): normed and, with tables (cos, sin), rotated. The scale is
        None; 8-bit codes have one a head (attention_float8.py).
        """
        rotated = tables[0] is not None
        x_BNC = self.rms_norm_rotate(x_BNC, weight_C, *tables) if rotated else self.rms_norm(x_BNC, weight_C)
        return x_BNC.unflatten(-1, (num_heads, -1)), None

    def key(self, x_BNC, weight_C, tables, num_heads, common_mean):
        """As `query`; see attention_float8.AttentionKernels.key."""
        return self.query(x_BNC, weight_C, tables, num_heads)

    def value(self, x, layer, num_heads, common_mean=None):
        """(v for attention [B, N, H, D], its scale, what to add to the output of attention [C] or None)."""
        return self.linear(x, layer).unflatten(-1, (num_heads, -1)), None, None

    def input_of_linear(self, x):
        """An activation [..., in] on its way into `linear`; where linears are 8-bit this quantises it."""
        return x

    def linear(self, x, layer, bias=None):
        """x W^T + b, with the layer's bias or another."""
        return F.linear(x, layer.weight, layer.bias if bias is None else bias)

    def linear_of_parts(self, parts, layer, shift_C=None):
        """`linear` of activations [B, n, in] one after the other, not yet inputs of a linear: [B, sum(n), out].

        `shift_C` fp32 is added to all of them, by way of the bias.
        """
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return self.linear(self.input_of_linear(x), layer, self.shifted_bias(layer, shift_C))

    def add_linear(self, x_BNC, gate_BC, n, layer):
        """x + gate * linear(n), without a gate x + linear(n): (x, what is left to add to it: (y, gate), or None)."""
        return x_BNC, (self.linear(n, layer), gate_BC)

    def add_linear_of_parts(self, x_BNC, gate_BC, parts, layer, shift_C=None):
        """`add_linear` of what `linear_of_parts` takes."""
        return x_BNC, (self.linear_of_parts(parts, layer, shift_C), gate_BC)

    def of_constant(self, layer, vector):
        """fp32 [out]: the product of a layer's weight with one vector fp32 [in], in full precision."""
        return F.linear(vector, layer.weight.float())

    def mean_of_input(self, x):
        """fp32 [in]: mean of an input of `linear` over all tokens of all samples."""
        return x.mean((0, 1), dtype=torch.float32)

    def shifted_bias(self, layer, shift_C):
        """The layer's bias with what a constant added to its input comes to; None where nothing is added."""
        return None if shift_C is None else (layer.bias + self.of_constant(layer, shift_C)).to(layer.bias.dtype)

    def linear_gelu(self, x, layer):
        """GELU(tanh) of `linear`, as input of the next linear."""
        return F.gelu(self.linear(x, layer), approximate="tanh")


class InductorKernels(EagerKernels):
    """Each method of the contract through torch.compile, one graph a shape."""

    norm = torch.compile(EagerKernels.norm, dynamic=False)
    update = torch.compile(EagerKernels.update, dynamic=False)
    update_gather = torch.compile(EagerKernels.update_gather, dynamic=False)
    update_norm = torch.compile(EagerKernels.update_norm, dynamic=False)
    rms_norm = torch.compile(EagerKernels.rms_norm, dynamic=False)
    rms_norm_rotate = torch.compile(EagerKernels.rms_norm_rotate, dynamic=False)


class TritonKernels(EagerKernels):
    """Hand-written kernels. No gradients; x, q and k are updated in place. Products in bf16 go to cuBLASLt, with the
    GELU inside; what they add to an fp32 stream they add themselves, with the gate in the weight's rows: y is not
    rounded, the weight twice.
    """

    def __init__(self):
        from tools.torch_reference.gpu import cublas_lt, triton_kernels

        self._triton, self._product = triton_kernels, cublas_lt.product

    def norm(self, x_BNC, factor_BC, shift_BC, dtype):
        return self._triton.update_norm(x_BNC, None, None, factor_BC, shift_BC, dtype)[1]

    def update(self, x_BNC, y_BNC, gate_BC=None):
        return self._triton.update_norm(x_BNC, y_BNC, gate_BC, None, None, None)[0]

    def update_gather(self, x_BNC, y_BNC, gate_BC, gather_N, dtype):
        return self._triton.update_norm(x_BNC, y_BNC, gate_BC, None, None, None, gather_N, dtype)[0]

    def update_norm(self, x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype, gather_N=None, residual_dtype=None):
        return self._triton.update_norm(x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype, gather_N, residual_dtype)

    def rms_norm(self, x_BNC, weight_C):
        return self._triton.rms_norm_rotate(x_BNC, weight_C, None, None)

    def rms_norm_rotate(self, x_BNC, weight_C, cos_Nd, sin_Nd):
        return self._triton.rms_norm_rotate(x_BNC, weight_C, cos_Nd, sin_Nd)

    @staticmethod
    def _by_cublas(x):
        return x.is_cuda and x.dtype == torch.bfloat16

    def linear(self, x, layer, bias=None):
        if not self._by_cublas(x):
            return super().linear(x, layer, bias)
        return self._product(x.contiguous(), layer.weight, layer.bias if bias is None else bias)

    def linear_of_parts(self, parts, layer, shift_C=None):
        """Every part's product goes to its place in the result, so that parts are never copied side by side."""
        if len(parts) == 1 or parts[0].shape[0] > 1 or not self._by_cublas(parts[0]):
            return super().linear_of_parts(parts, layer, shift_C)
        bias = layer.bias if shift_C is None else self.shifted_bias(layer, shift_C)
        lengths = [part.shape[1] for part in parts]
        y = parts[0].new_empty(1, sum(lengths), layer.weight.shape[0])
        for part, out in zip(parts, y.split(lengths, dim=1), strict=True):
            self._product(part.contiguous(), layer.weight, bias, out=out)
        return y

    def add_linear(self, x_BNC, gate_BC, n, layer):
        return self.add_linear_of_parts(x_BNC, gate_BC, [n], layer)

    def add_linear_of_parts(self, x_BNC, gate_BC, parts, layer, shift_C=None):
        if not (adds_itself(x_BNC, gate_BC, parts) and self._by_cublas(parts[0])):
            return super().add_linear_of_parts(x_BNC, gate_BC, parts, layer, shift_C)
        weight, bias = layer.weight, layer.bias.float()
        if shift_C is not None:
            bias = bias + self.of_constant(layer, shift_C)
        if gate_BC is not None:
            weight = self._triton.scale_rows(weight, gate_BC[0].contiguous())
            bias = bias * gate_BC[0]
        for part, out in zip(parts, x_BNC.split([part.shape[1] for part in parts], dim=1), strict=True):
            self._product(part.contiguous(), weight, bias, out=out, adds=True)
        return x_BNC, None

    def linear_gelu(self, x, layer):
        if not self._by_cublas(x):
            return super().linear_gelu(x, layer)
        return self._product(x.contiguous(), layer.weight, layer.bias, gelu=True)


def adds_itself(x_BNC, gate_BC, parts):
    """Whether products can add to the stream x: fp32, one gate for all rows, the parts one after the other."""
    return x_BNC.dtype == torch.float32 and (x_BNC.shape[0] == 1 or (gate_BC is None and len(parts) == 1))


IMPLEMENTATIONS = {"eager": EagerKernels, "inductor": InductorKernels, "triton": TritonKernels}


@functools.cache
def kernels(name):
    """The implementation `name`. Raises ValueError for an unknown one, ImportError where Triton is missing."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"kernels is {name!r}; valid: {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[name]()


def default_kernels(device):
    """Triton for inference on NVIDIA GPUs, else the eager contract."""
    on_gpu = torch.device(device).type == "cuda" and importlib.util.find_spec("triton") is not None
    return kernels("triton" if on_gpu and not torch.is_grad_enabled() else "eager")
