"""Triton kernels that quantise activations to float8 e4m3. Contracts: float8.py.

A program takes a few rows and keeps a row in registers. Steps of one kernel, chosen at compile time:
"rows": every row gets its scale and its codes in one pass; "amax": only the largest magnitude of everything, by atomic
maximum; "cast": codes at the scale of a known largest magnitude. GELU, where asked for, is recomputed in both passes:
cheaper than to write its output twice as wide.
"""

import torch
import triton
import triton.language as tl

from tools.torch_reference.dit import NORM_EPS
from tools.torch_reference.gpu.triton_kernels import _vectors

ROWS_PER_PROGRAM = 4
NUM_WARPS = 8
FP8_MAX = tl.constexpr(448.0)
TINY = tl.constexpr(1e-30)


@triton.jit
def _gelu_tanh(x):
    return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


@triton.jit
def _to_codes(x, factor):
    scaled = tl.minimum(tl.maximum(x * factor, -FP8_MAX), FP8_MAX)
    return scaled.to(tl.float8e4nv)


@triton.jit
def _factor_of(amax):
    """448 / amax, 1 where everything is zero."""
    return tl.where(amax > 0, FP8_MAX / tl.maximum(amax, TINY), 1.0)


@triton.jit
def _quantise_kernel(x_ptr, codes_ptr, scale_ptr, amax_ptr, num_rows,
                     WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
                     STEP: tl.constexpr, GELU: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    start = tl.program_id(0) * ROWS
    largest = 0.0
    if STEP == "cast":
        factor = _factor_of(tl.load(amax_ptr))
        if start == 0:
            tl.store(scale_ptr, 1.0 / factor)
    for i in range(0, tl.minimum(ROWS, num_rows - start)):
        row = start + i
        offsets = row.to(tl.int64) * WIDTH + columns
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        if GELU:
            x = _gelu_tanh(x)
        if STEP == "amax":
            largest = tl.maximum(largest, tl.max(tl.abs(x), axis=0))
        else:
            if STEP == "rows":
                factor = _factor_of(tl.max(tl.abs(x), axis=0))
                tl.store(scale_ptr + row, 1.0 / factor)
            tl.store(codes_ptr + offsets, _to_codes(x, factor), mask=inside)
    if STEP == "amax":
        tl.atomic_max(amax_ptr, largest)


def _launch(x, codes, scale, amax, step, gelu, rows, num_warps):
    width = x.shape[-1]
    num_rows = x.numel() // width
    if num_rows:
        _quantise_kernel[(triton.cdiv(num_rows, rows),)](
            x, codes, scale, amax, num_rows, WIDTH=width, BLOCK=triton.next_power_of_2(width), ROWS=rows, STEP=step,
            GELU=gelu, num_warps=num_warps)


def quantise_rows(x, gelu=False, rows=ROWS_PER_PROGRAM, num_warps=NUM_WARPS):
    """x [..., K] contiguous -> (codes [..., K], scale [..., 1] fp32)."""
    assert x.is_contiguous()
    codes, scale = torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    _launch(x, codes, scale, scale, "rows", gelu, rows, num_warps)
    return codes, scale


def quantise_tensor(x, gelu=False, amax=None, rows=ROWS_PER_PROGRAM, num_warps=NUM_WARPS):
    """x contiguous -> (codes, scale [] fp32); `amax` [] fp32 where the largest magnitude is known already."""
    assert x.is_contiguous()
    codes, scale = torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_ones((), dtype=torch.float32)
    if amax is None:
        amax = x.new_zeros((), dtype=torch.float32)
        _launch(x, codes, scale, amax, "amax", gelu, rows, num_warps)
    _launch(x, codes, scale, amax, "cast", gelu, rows, num_warps)
    return codes, scale


@triton.jit
def _update_norm_quantise_kernel(x_ptr, y_ptr, gate_ptr, factor_ptr, shift_ptr, gather_ptr, out_ptr, n_ptr, scale_ptr,
                                 amax_ptr, num_tokens, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
                                 ROWS: tl.constexpr, UPDATE: tl.constexpr, GATE: tl.constexpr, GATHER: tl.constexpr,
                                 STEP: tl.constexpr):
    sample = tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    if GATE:
        gate = tl.load(gate_ptr + sample * WIDTH + columns, mask=inside, other=0.0)
    scaling = tl.load(factor_ptr + sample * WIDTH + columns, mask=inside, other=0.0)
    shift = tl.load(shift_ptr + sample * WIDTH + columns, mask=inside, other=0.0)
    start = tl.program_id(0) * ROWS
    largest = 0.0
    for token in range(start, tl.minimum(start + ROWS, num_tokens)):
        row = (sample * num_tokens + token).to(tl.int64)
        offsets = row * WIDTH + columns
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
        mean = tl.sum(x, axis=0) / WIDTH
        centred = tl.where(inside, x - mean, 0.0)
        variance = tl.sum(centred * centred, axis=0) / WIDTH
        n = centred * tl.rsqrt(variance + eps) * scaling + shift
        if STEP == "rows":
            factor = _factor_of(tl.max(tl.abs(n), axis=0))
            tl.store(scale_ptr + row, 1.0 / factor)
            tl.store(n_ptr + offsets, _to_codes(n, factor), mask=inside)
        else:
            n = n.to(n_ptr.dtype.element_ty)
            tl.store(n_ptr + offsets, n, mask=inside)
            largest = tl.maximum(largest, tl.max(tl.abs(n.to(tl.float32)), axis=0))
    if STEP == "amax":
        tl.atomic_max(amax_ptr, largest)


def update_norm_quantise(x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype, scaling, gather_N=None,
                         rows=ROWS_PER_PROGRAM, num_warps=NUM_WARPS):
    """x + gate * y (left out where y is None); LayerNorm(x) * factor + shift as (codes [B, N, C], scale).

    x is updated in place or, with `gather_N`, a new one with token gather[i] in place i, as are the codes.

    `scaling` "row" quantises in the same pass; "tensor" writes the norm in `dtype`, keeps its largest magnitude, and
    casts in a second pass.
    """
    batch, num_tokens, width = x_BNC.shape
    update = y_BNC is not None
    by_row = scaling == "row"
    assert x_BNC.is_contiguous()
    assert not update or (y_BNC.is_contiguous() and y_BNC.shape == x_BNC.shape)
    assert gather_N is None or (update and gather_N.shape == (num_tokens,) and gather_N.is_contiguous())
    out_BNC = x_BNC if gather_N is None else torch.empty_like(x_BNC)
    n_BNC = torch.empty_like(x_BNC, dtype=torch.float8_e4m3fn if by_row else dtype)
    scale = x_BNC.new_empty(batch, num_tokens, 1, dtype=torch.float32)
    amax = x_BNC.new_zeros((), dtype=torch.float32)
    if x_BNC.numel():
        gate, factor, shift = (_vectors(v, batch, width) for v in (gate_BC, factor_BC, shift_BC))
        _update_norm_quantise_kernel[(triton.cdiv(num_tokens, rows), batch)](
            x_BNC, y_BNC if update else x_BNC, gate if gate is not None else factor, factor, shift,
            x_BNC if gather_N is None else gather_N, out_BNC, n_BNC, scale, amax, num_tokens, NORM_EPS, WIDTH=width,
            BLOCK=triton.next_power_of_2(width), ROWS=rows, UPDATE=update, GATE=gate is not None,
            GATHER=gather_N is not None, STEP="rows" if by_row else "amax", num_warps=num_warps)
    return out_BNC, *((n_BNC, scale) if by_row else quantise_tensor(n_BNC, amax=amax))
