"""Triton kernels that make float8 e4m3 codes of q and k: RMS norm, rotation, centring. Contracts: attention_float8.py.

A program takes one row and keeps it in registers as [H, D], in two blocks where H is no power of two. Steps of one
kernel, chosen at compile time: "cast": codes at given largest magnitudes; "amax": only the largest magnitude of every
head, by atomic maximum; "rows": the numbers themselves, fp32, of every few rows.
"""

import torch
import triton
import triton.language as tl

from tools.torch_reference.dit import NORM_EPS
from tools.torch_reference.gpu.triton_kernels import (
    ROTATE_WARPS,
    _factor_of,
    _rotated,
    _to_codes,
    halves,
    largest_power_of_two_dividing,
)


@triton.jit
def _finish(x, rrms, weight_ptr, cos_ptr, sin_ptr, mean_ptr, codes_ptr, scale_ptr, amax_ptr, columns, head, token,
            is_first, HEADS: tl.constexpr, BLOCK: tl.constexpr, PAIRS: tl.constexpr, ROTATE: tl.constexpr,
            CENTRE: tl.constexpr, STEP: tl.constexpr):
    inside = head < HEADS
    mask = inside[:, None]
    x = x * rrms * tl.load(weight_ptr + columns, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
    if ROTATE:
        x = _rotated(x, cos_ptr, sin_ptr, token, BLOCK, PAIRS)
    if CENTRE:
        x = x - tl.load(mean_ptr + columns, mask=mask, other=0.0, eviction_policy="evict_last")
    if STEP == "amax":
        tl.atomic_max(amax_ptr + head, tl.max(tl.abs(x), axis=1), mask=inside)
    elif STEP == "rows":
        tl.store(codes_ptr + columns, x, mask=mask)
    else:
        factor = _factor_of(tl.load(amax_ptr + head, mask=inside, other=0.0))
        if is_first:
            tl.store(scale_ptr + head, 1.0 / factor, mask=inside)
        tl.store(codes_ptr + columns, _to_codes(x, factor[:, None]), mask=mask)


@triton.jit
def _rotate_quantise_kernel(x_ptr, weight_ptr, cos_ptr, sin_ptr, mean_ptr, codes_ptr, scale_ptr, amax_ptr, num_tokens,
                            eps, HEADS: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, PAIRS: tl.constexpr,
                            STRIDE: tl.constexpr, ROTATE: tl.constexpr, CENTRE: tl.constexpr, STEP: tl.constexpr):
    WIDTH: tl.constexpr = HEADS * PAIRS * 2
    row, sample = tl.program_id(0), tl.program_id(1)
    token = row * STRIDE
    x_ptr += (sample * num_tokens + token).to(tl.int64) * WIDTH
    codes_ptr += (sample * tl.num_programs(0) + row).to(tl.int64) * WIDTH
    mean_ptr += sample * WIDTH
    is_first = (row == 0) & (sample == 0)
    inner = tl.arange(0, PAIRS * 2)[None, :]
    head_a = tl.arange(0, FIRST)
    a = head_a[:, None] * (PAIRS * 2) + inner
    xa = tl.load(x_ptr + a).to(tl.float32)
    square = tl.sum(tl.sum(xa * xa, axis=1), axis=0)
    if REST > 0:
        head_b = FIRST + tl.arange(0, REST)
        b = head_b[:, None] * (PAIRS * 2) + inner
        xb = tl.load(x_ptr + b, mask=b < WIDTH, other=0.0).to(tl.float32)
        square += tl.sum(tl.sum(xb * xb, axis=1), axis=0)
    rrms = tl.rsqrt(square / WIDTH + eps)
    _finish(xa, rrms, weight_ptr, cos_ptr, sin_ptr, mean_ptr, codes_ptr, scale_ptr, amax_ptr, a, head_a, token,
            is_first, HEADS, FIRST, PAIRS, ROTATE, CENTRE, STEP)
    if REST > 0:
        _finish(xb, rrms, weight_ptr, cos_ptr, sin_ptr, mean_ptr, codes_ptr, scale_ptr, amax_ptr, b, head_b, token,
                is_first, HEADS, REST, PAIRS, ROTATE, CENTRE, STEP)


def _launch(x_BNC, weight_C, tables, num_heads, mean_BC, codes, scale, amax, step, stride=1, warps=ROTATE_WARPS):
    batch, num_tokens, width = x_BNC.shape
    cos_Nd, sin_Nd = tables
    rotated = cos_Nd is not None
    pairs = width // num_heads // 2
    assert x_BNC.is_contiguous()
    assert width == 2 * pairs * num_heads
    assert pairs == largest_power_of_two_dividing(pairs), "the head width must be a power of two"
    if x_BNC.numel():
        first, rest = halves(num_heads)
        _rotate_quantise_kernel[(triton.cdiv(num_tokens, stride), batch)](
            x_BNC, weight_C, cos_Nd if rotated else weight_C, sin_Nd if rotated else weight_C,
            weight_C if mean_BC is None else mean_BC, codes, scale, amax, num_tokens, NORM_EPS, HEADS=num_heads,
            FIRST=first, REST=rest, PAIRS=pairs, STRIDE=stride, ROTATE=rotated, CENTRE=mean_BC is not None, STEP=step,
            num_warps=warps)


def mean_of_rotated(x_BNC, weight_C, tables, num_heads, stride):
    """Mean [B, C] fp32 over every `stride`-th token of RMS norm and rotation."""
    batch, num_tokens, width = x_BNC.shape
    rows = x_BNC.new_empty(batch, triton.cdiv(num_tokens, stride), width, dtype=torch.float32)
    _launch(x_BNC, weight_C, tables, num_heads, None, rows, rows, rows, "rows", stride=stride)
    return rows.mean(1)


def rotate_quantise(x_BNC, weight_C, tables, num_heads, bound_H=None, a_head=True, mean_BC=None, warps=ROTATE_WARPS):
    """RMS norm over C, rotation where there are tables, less `mean_BC` fp32: (codes [B, N, H, D], scale [H] fp32).

    With `bound_H` fp32 it takes one pass; without, the largest magnitudes, one a head or one in all, are looked for
    first. D must be a power of two.
    """
    codes = torch.empty_like(x_BNC, dtype=torch.float8_e4m3fn)
    scale_H = x_BNC.new_ones(num_heads, dtype=torch.float32)
    arguments = x_BNC, weight_C, tables, num_heads, None if mean_BC is None else mean_BC.contiguous(), codes, scale_H
    if bound_H is None:
        bound_H = torch.zeros_like(scale_H)
        _launch(*arguments, bound_H, "amax", warps=warps)
        if not a_head:
            bound_H = bound_H.amax().expand(num_heads).contiguous()
    _launch(*arguments, bound_H, "cast", warps=warps)
    return codes.unflatten(-1, (num_heads, -1)), scale_H
