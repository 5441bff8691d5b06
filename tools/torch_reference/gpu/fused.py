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

    def update_norm(self, x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype, gather_N=None):
        """(update(x, y, gate), norm of that); with `gather_N` both have token gather[i] in place i."""
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

    def input_of_linear(self, x):
        """An activation [..., in] on its way into `linear`; where linears are 8-bit this quantises it."""
        return x

    def linear(self, x, layer):
        """x W^T + b."""
        return F.linear(x, layer.weight, layer.bias)

    def linear_of_parts(self, parts, layer):
        """`linear` of activations [B, n, in] one after the other, not yet inputs of a linear: [B, sum(n), out]."""
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return self.linear(self.input_of_linear(x), layer)

    def linear_gelu(self, x, layer):
        """GELU(tanh) of `linear`, as input of the next linear."""
        return F.gelu(self.linear(x, layer), approximate="tanh")


class InductorKernels(EagerKernels):
    """Each method of the contract through torch.compile, one graph a shape."""

    norm = torch.compile(EagerKernels.norm, dynamic=False)
    update = torch.compile(EagerKernels.update, dynamic=False)
    update_norm = torch.compile(EagerKernels.update_norm, dynamic=False)
    rms_norm = torch.compile(EagerKernels.rms_norm, dynamic=False)
    rms_norm_rotate = torch.compile(EagerKernels.rms_norm_rotate, dynamic=False)


class TritonKernels(EagerKernels):
    """Hand-written kernels. No gradients; x, q and k are updated in place.

    `gelu_epilogue` computes the GELU inside the matrix product (cuBLASLt, bf16 only).
    """

    def __init__(self, gelu_epilogue=True):
        from tools.torch_reference.gpu import triton_kernels

        self._triton = triton_kernels
        self.gelu_epilogue = gelu_epilogue

    def norm(self, x_BNC, factor_BC, shift_BC, dtype):
        return self._triton.update_norm(x_BNC, None, None, factor_BC, shift_BC, dtype)[1]

    def update(self, x_BNC, y_BNC, gate_BC=None):
        return self._triton.update_norm(x_BNC, y_BNC, gate_BC, None, None, None)[0]

    def update_norm(self, x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype, gather_N=None):
        return self._triton.update_norm(x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype, gather_N)

    def rms_norm(self, x_BNC, weight_C):
        return self._triton.rms_norm_rotate(x_BNC, weight_C, None, None)

    def rms_norm_rotate(self, x_BNC, weight_C, cos_Nd, sin_Nd):
        return self._triton.rms_norm_rotate(x_BNC, weight_C, cos_Nd, sin_Nd)

    def linear_of_parts(self, parts, layer):
        """Every part's product goes to its place in the result, so that parts are never copied side by side."""
        if len(parts) == 1 or parts[0].shape[0] > 1:
            return super().linear_of_parts(parts, layer)
        y = parts[0].new_empty(1, sum(part.shape[1] for part in parts), layer.weight.shape[0])
        for part, out in zip(parts, y[0].split([part.shape[1] for part in parts]), strict=True):
            torch.addmm(layer.bias, part[0], layer.weight.t(), out=out)
        return y

    def linear_gelu(self, x, layer):
        if not (self.gelu_epilogue and x.is_cuda and x.dtype == torch.bfloat16):
            return super().linear_gelu(x, layer)
        y = torch._addmm_activation(layer.bias, x.flatten(0, -2), layer.weight.t(), use_gelu=True)
        return y.unflatten(0, x.shape[:-1])


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
