"""Float8 e4m3 codes of q and k on GPUs: RMS norm, rotation, centring. Contracts: attention_float8.py."""

import torch
import triton

from tools.torch_reference.gpu.triton_kernels import ROTATE_WARPS, launch_rotate


def mean_of_rotated(x_BNC, weight_C, tables, num_heads, stride):
    """Mean [B, C] fp32 over every `stride`-th token of RMS norm and rotation."""
    batch, num_tokens, width = x_BNC.shape
    rows = x_BNC.new_empty(batch, triton.cdiv(num_tokens, stride), width, dtype=torch.float32)
    launch_rotate(x_BNC, weight_C, tables, num_heads, rows, stride=stride)
    return rows.mean(1)


def rotate_quantise(x_BNC, weight_C, tables, num_heads, bound_H=None, a_head=True, mean_BC=None, warps=ROTATE_WARPS):
    """RMS norm over C, rotation where there are tables, less `mean_BC` fp32: (codes [B, N, H, D], scale [H] fp32).

    With `bound_H` fp32 it takes one pass; without, the largest magnitudes, one a head or one in all, are looked for
    first. D must be a power of two.
    """
    codes = torch.empty_like(x_BNC, dtype=torch.float8_e4m3fn)
    scale_H = x_BNC.new_ones(num_heads, dtype=torch.float32)
    arguments = x_BNC, weight_C, tables, num_heads, codes
    mean_BC = None if mean_BC is None else mean_BC.contiguous()
    if bound_H is None:
        bound_H = torch.zeros_like(scale_H)
        launch_rotate(*arguments, "amax", mean_BC, scale_H, bound_H, warps=warps)
        if not a_head:
            bound_H = bound_H.amax().expand(num_heads).contiguous()
    launch_rotate(*arguments, "cast", mean_BC, scale_H, bound_H, warps=warps)
    return codes.unflatten(-1, (num_heads, -1)), scale_H
