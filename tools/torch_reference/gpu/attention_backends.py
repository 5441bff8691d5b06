"""Softmax attention without masks on the fastest kernel a device has. B batch, N queries, M keys, H heads, D width.

Operands are numbers or, with `scales`, 8-bit codes: float8 e4m3, which FlashAttention-3 multiplies as they are, or
HiF8 numbers in bf16. A backend is called with q [B, N, H, D], k and v [B, M, H, D] and returns
softmax(q k^T / sqrt(D)) v, [B, N, H, D]; `sub_sequences` attends inside consecutive sub-sequences.
"""

import functools
import importlib
import importlib.util
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

_SDPA_BACKENDS = {
    "default": None,
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
FA3_BACKENDS = ("fa3", "fa3-varlen")
BACKENDS = (*_SDPA_BACKENDS, *FA3_BACKENDS)
# FlashAttention-3 as built from its sources, and as the wheel `fa3-fwd`, which has no backward pass.
FA3_MODULES = ("flash_attn_interface", "fa3_fwd_interface")


@functools.cache
def fa3_module():
    """The installed module of FlashAttention-3, or None."""
    for name in FA3_MODULES:
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    return None


@dataclass(frozen=True)
class SDPA:
    """PyTorch's attention. `scales`: None, or fp32 [H] for q, k and v: codes become numbers before the call."""

    backend: SDPBackend | None = None
    scales: tuple | None = None

    def scaled(self, scales):
        """The same for 8-bit codes with these scales."""
        return replace(self, scales=scales)

    def __call__(self, q_BNHD, k_BMHD, v_BMHD):
        operands = q_BNHD, k_BMHD, v_BMHD
        if self.scales is not None:
            operands = (dequantised(x, scale) for x, scale in zip(operands, self.scales, strict=True))
        heads_first = (x.transpose(1, 2) for x in operands)
        if self.backend is None:
            return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)
        with sdpa_kernel(self.backend):
            return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)

    def sub_sequences(self, q_BNHD, k_BNHD, v_BNHD, runs):
        return one_call_a_run(self, q_BNHD, k_BNHD, v_BNHD, runs)


@dataclass(frozen=True)
class FlashAttention3:
    """FlashAttention-3. `scales` as above; e4m3 codes are multiplied as they are, other codes become numbers.

    `varlen`: sub-sequences of any lengths in one call of the variable-length kernel.
    """

    varlen: bool = False
    scales: tuple | None = None

    def scaled(self, scales):
        """The same for 8-bit codes with these scales."""
        return replace(self, scales=scales)

    def __call__(self, q_BNHD, k_BMHD, v_BMHD):
        operands, descale = self._operands((q_BNHD, k_BMHD, v_BMHD), q_BNHD.shape[0])
        return _first(fa3_module().flash_attn_func(*operands, **descale))

    def sub_sequences(self, q_BNHD, k_BNHD, v_BNHD, runs):
        if not self.varlen:
            return one_call_a_run(self, q_BNHD, k_BNHD, v_BNHD, runs)
        batch = q_BNHD.shape[0]
        lengths = [length for count, length in runs for _ in range(count)] * batch
        operands, descale = self._operands((x.flatten(0, 1) for x in (q_BNHD, k_BNHD, v_BNHD)), len(lengths))
        ends, longest = _ends(tuple(lengths), q_BNHD.device), max(lengths)
        out = fa3_module().flash_attn_varlen_func(*operands, ends, ends, longest, longest, **descale)
        return (_first(out).unflatten(0, (batch, -1)),)

    def _operands(self, operands, calls):
        operands = tuple(operands)
        if self.scales is None:
            return operands, {}
        if operands[0].dtype != torch.float8_e4m3fn:
            return tuple(dequantised(x, scale) for x, scale in zip(operands, self.scales, strict=True)), {}
        return operands, {f"{name}_descale": scale.expand(calls, -1)
                          for name, scale in zip("qkv", self.scales, strict=True)}


def _first(out):
    """The output without the sums that some versions return beside it."""
    return out[0] if isinstance(out, tuple) else out


@functools.lru_cache(maxsize=64)
def _ends(lengths, device):
    with torch.inference_mode(False):
        return torch.tensor((0, *accumulate(lengths)), dtype=torch.int32, device=device)


def dequantised(codes_BNHD, scale_H):
    """Codes times the scale of their head; e4m3 and HiF8 numbers on a GPU in bf16, elsewhere in fp32."""
    numbers = codes_BNHD.float() * scale_H[:, None]
    return numbers.bfloat16() if codes_BNHD.is_cuda else numbers


def one_call_a_run(attention, q_BNHD, k_BNHD, v_BNHD, runs):
    """Attention inside consecutive sub-sequences, one call a run of equal lengths; at B = 1 q, k, v are never copied.

    N is the sum of count * length over `runs`. Returns a tuple of [B, n, H, D], one a run, to be read one after the
    other: kernels.linear_of_parts needs no copy of them side by side.
    """
    batch, _, num_heads, head_dim = v_BNHD.shape
    outputs = []
    start = 0
    for count, length in runs:
        parts = (x[:, start : start + count * length] for x in (q_BNHD, k_BNHD, v_BNHD))
        out = attention(*(part.reshape(batch * count, length, num_heads, head_dim) for part in parts))
        outputs.append(out.reshape(batch, count * length, num_heads, head_dim))
        start += count * length
    return tuple(outputs)


def attention_backend(name):
    """The backend `name`: "default" lets PyTorch choose; "cudnn", "flash" (FlashAttention-2) and "math" insist; "fa3"
    and "fa3-varlen" are FlashAttention-3. Raises ValueError for another name or a missing package.
    """
    if name not in BACKENDS:
        raise ValueError(f"attention backend is {name!r}; valid: {', '.join(BACKENDS)}")
    if name in FA3_BACKENDS:
        if fa3_module() is None:
            raise ValueError(f"attention backend {name!r} needs one of the modules {', '.join(FA3_MODULES)}; none is "
                             "installed (the wheel fa3-fwd brings one)")
        return FlashAttention3(varlen=name == "fa3-varlen")
    return SDPA(_SDPA_BACKENDS[name])


def candidates(device, training=False):
    """Backends worth timing on a device; those of FlashAttention-3's wheel have no gradient."""
    if torch.device(device).type != "cuda":
        return ("default",)
    return ("cudnn", "flash", *(FA3_BACKENDS if fa3_module() and not training else ()))


def candidates_float8(device):
    """Backends worth timing on e4m3 codes."""
    if torch.device(device).type != "cuda" or fa3_module() is None:
        return ("default",)
    return FA3_BACKENDS
