"""Triton kernels of the residual stream: update + norm + modulation, and RMS norm + rotation. Contracts: fused.py.

A program takes a few rows of one sample and keeps a row in registers, so that every tensor crosses device memory once.
The vectors of a sample (factor, shift, gate) are loaded once a program.
"""

import torch
import triton
import triton.language as tl

from tools.torch_reference.dit import NORM_EPS

# Fastest on an H100 at width 5120 (microbenchmark.py): (rows a program, warps).
NORM_SHAPE = (2, 8)
ROTATE_SHAPE = (2, 4)


@triton.jit
def _update_norm_kernel(x_ptr, y_ptr, gate_ptr, factor_ptr, shift_ptr, gather_ptr, out_ptr, n_ptr, num_tokens, eps,
                        WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
                        UPDATE: tl.constexpr, GATE: tl.constexpr, NORM: tl.constexpr, GATHER: tl.constexpr):
    sample = tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    if GATE:
        gate = tl.load(gate_ptr + sample * WIDTH + columns, mask=inside, other=0.0)
    if NORM:
        factor = tl.load(factor_ptr + sample * WIDTH + columns, mask=inside, other=0.0)
        shift = tl.load(shift_ptr + sample * WIDTH + columns, mask=inside, other=0.0)
    start = tl.program_id(0) * ROWS
    for token in range(start, tl.minimum(start + ROWS, num_tokens)):
        offsets = (sample * num_tokens + token).to(tl.int64) * WIDTH + columns
        source = offsets
        if GATHER:
            source = (sample * num_tokens + tl.load(gather_ptr + token)).to(tl.int64) * WIDTH + columns
        x = tl.load(x_ptr + source, mask=inside, other=0.0).to(tl.float32)
        if UPDATE:
            y = tl.load(y_ptr + source, mask=inside, other=0.0).to(tl.float32)
            if GATE:
                y = y * gate
            rounded = (x + y).to(x_ptr.dtype.element_ty)
            tl.store(out_ptr + offsets, rounded, mask=inside)
            x = rounded.to(tl.float32)
        if NORM:
            mean = tl.sum(x, axis=0) / WIDTH
            centred = tl.where(inside, x - mean, 0.0)
            variance = tl.sum(centred * centred, axis=0) / WIDTH
            n = centred * tl.rsqrt(variance + eps) * factor + shift
            tl.store(n_ptr + offsets, n.to(n_ptr.dtype.element_ty), mask=inside)


def update_norm(x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype, gather_N=None, shape=NORM_SHAPE):
    """x + gate * y, and LayerNorm(x) * factor + shift in `dtype`; each part is left out where it is None.

    Returns (x, normed or None): x in place or, with `gather_N`, a new one with token gather[i] in place i, as normed.
    """
    rows, num_warps = shape
    batch, num_tokens, width = x_BNC.shape
    update, normed = y_BNC is not None, factor_BC is not None
    n_BNC = torch.empty_like(x_BNC, dtype=dtype) if normed else None
    assert x_BNC.is_contiguous()
    assert not update or (y_BNC.is_contiguous() and y_BNC.shape == x_BNC.shape)
    assert gather_N is None or (update and gather_N.shape == (num_tokens,) and gather_N.is_contiguous())
    out_BNC = x_BNC if gather_N is None else torch.empty_like(x_BNC)
    if x_BNC.numel():
        gate, factor, shift = (_vectors(v, batch, width) for v in (gate_BC, factor_BC, shift_BC))
        _update_norm_kernel[(triton.cdiv(num_tokens, rows), batch)](
            x_BNC, y_BNC if update else x_BNC, gate if gate is not None else x_BNC,
            factor if normed else x_BNC, shift if normed else x_BNC, x_BNC if gather_N is None else gather_N, out_BNC,
            n_BNC if normed else x_BNC, num_tokens, NORM_EPS,
            WIDTH=width, BLOCK=triton.next_power_of_2(width), ROWS=rows, UPDATE=update, GATE=gate is not None,
            NORM=normed, GATHER=gather_N is not None, num_warps=num_warps,
        )
    return out_BNC, n_BNC


def _vectors(vector_BC, batch, width):
    return None if vector_BC is None else vector_BC.float().expand(batch, width).contiguous()


@triton.jit
def _rms_norm_rotate_kernel(x_ptr, weight_ptr, cos_ptr, sin_ptr, num_tokens, eps,
                            HEADS: tl.constexpr, HEADS_BLOCK: tl.constexpr, PAIRS: tl.constexpr,
                            ROWS: tl.constexpr, ROTATE: tl.constexpr):
    WIDTH: tl.constexpr = HEADS * PAIRS * 2
    sample = tl.program_id(1)
    heads = tl.arange(0, HEADS_BLOCK)[:, None]
    columns = heads * (PAIRS * 2) + tl.arange(0, PAIRS * 2)[None, :]
    inside = (heads < HEADS) & (columns < WIDTH)
    pairs = tl.arange(0, PAIRS)[None, :]
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    start = tl.program_id(0) * ROWS
    for token in range(start, tl.minimum(start + ROWS, num_tokens)):
        offsets = (sample * num_tokens + token).to(tl.int64) * WIDTH + columns
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        mean_square = tl.sum(tl.sum(x * x, axis=1), axis=0) / WIDTH
        x = x * tl.rsqrt(mean_square + eps) * weight
        if ROTATE:
            even, odd = tl.split(tl.reshape(x, (HEADS_BLOCK, PAIRS, 2)))
            cos = tl.load(cos_ptr + token * PAIRS + pairs)
            sin = tl.load(sin_ptr + token * PAIRS + pairs)
            x = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (HEADS_BLOCK, PAIRS * 2))
        tl.store(x_ptr + offsets, x.to(x_ptr.dtype.element_ty), mask=inside)


def rms_norm_rotate(x_BNC, weight_C, cos_Nd, sin_Nd, shape=ROTATE_SHAPE):
    """RMS norm over C and, with tables, rotation of the interleaved pairs; in place, returns x.

    D (with tables) must be a power of two.
    """
    rows, num_warps = shape
    batch, num_tokens, width = x_BNC.shape
    rotated = cos_Nd is not None
    pairs = cos_Nd.shape[-1] if rotated else _largest_power_of_two_dividing(width) // 2
    assert x_BNC.is_contiguous()
    assert width % (2 * pairs) == 0
    if x_BNC.numel():
        heads = width // (2 * pairs)
        _rms_norm_rotate_kernel[(triton.cdiv(num_tokens, rows), batch)](
            x_BNC, weight_C, cos_Nd if rotated else weight_C, sin_Nd if rotated else weight_C, num_tokens, NORM_EPS,
            HEADS=heads, HEADS_BLOCK=triton.next_power_of_2(heads), PAIRS=pairs, ROWS=rows, ROTATE=rotated,
            num_warps=num_warps,
        )
    return x_BNC


def _largest_power_of_two_dividing(number):
    return number & -number
