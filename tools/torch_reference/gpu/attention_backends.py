"""Softmax attention without masks on the fastest kernel a device has. B batch, N queries, M keys, H heads, D width."""

import importlib.util
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

_SDPA_BACKENDS = {
    "default": None,
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
BACKENDS = (*_SDPA_BACKENDS, "fa3")


def attention_backend(name):
    """Callable (q [B, N, H, D], k and v [B, M, H, D]) -> softmax(q k^T / sqrt(D)) v, [B, N, H, D].

    "default" lets PyTorch choose; "cudnn", "flash" (FlashAttention-2) and "math" insist; "fa3" is FlashAttention-3 from
    the package flash_attn_interface. Raises ValueError for another name or a missing package.
    """
    if name not in BACKENDS:
        raise ValueError(f"attention backend is {name!r}; valid: {', '.join(BACKENDS)}")
    if name == "fa3":
        if importlib.util.find_spec("flash_attn_interface") is None:
            raise ValueError("attention backend 'fa3' needs the package flash_attn_interface, which is not installed")
        return _flash_attention_3
    return partial(_sdpa, backend=_SDPA_BACKENDS[name])


def _sdpa(q_BNHD, k_BMHD, v_BMHD, backend):
    heads_first = (x.transpose(1, 2) for x in (q_BNHD, k_BMHD, v_BMHD))
    if backend is None:
        return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)


def _flash_attention_3(q_BNHD, k_BMHD, v_BMHD):
    from flash_attn_interface import flash_attn_func

    out = flash_attn_func(q_BNHD, k_BMHD, v_BMHD)
    return out[0] if isinstance(out, tuple) else out


def candidates(device):
    """Backends worth timing on a device."""
    if torch.device(device).type != "cuda":
        return ("default",)
    fa3 = ("fa3",) if importlib.util.find_spec("flash_attn_interface") else ()
    return ("cudnn", "flash", *fa3)
