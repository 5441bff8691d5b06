"""Triton kernels that quantise activations to float8 e4m3. Contracts: float8.py.

Steps, chosen at compile time: "rows": every row gets its scale and its codes in one pass; "amax": only the largest
magnitude of everything, by atomic maximum; "cast" (of a norm: "bound"): codes at the scale of a known largest
magnitude. GELU, where asked for, is recomputed in both passes: cheaper than to write its output twice as wide.
"""

import torch
import triton
import triton.language as tl

from tools.torch_reference.gpu.float8 import SAMPLE_MARGIN, SAMPLE_STRIDE
from tools.torch_reference.gpu.triton_kernels import _HALVES, NORM_WARPS, _factor_of, _to_codes, launch_update_norm

ROWS_PER_PROGRAM, ROW_WARPS = 4, 8
# Fastest on an H100 (microbenchmark.py): numbers a program of a cast, warps.
CAST_SHAPE = (2048, 4)


@triton.jit
def _gelu_tanh(x):
    return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


@triton.jit
def _quantise_rows_kernel(x_ptr, codes_ptr, scale_ptr, amax_ptr, num_rows,
                          WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, STRIDE: tl.constexpr,
                          STEP: tl.constexpr, GELU: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    start = tl.program_id(0) * ROWS
    largest = 0.0
    for i in range(0, tl.minimum(ROWS, num_rows - start)):
        row = (start + i) * STRIDE
        offsets = row.to(tl.int64) * WIDTH + columns
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        if GELU:
            x = _gelu_tanh(x)
        if STEP == "amax":
            largest = tl.maximum(largest, tl.max(tl.abs(x), axis=0))
        else:
            factor = _factor_of(tl.max(tl.abs(x), axis=0))
            tl.store(scale_ptr + row, 1.0 / factor)
            tl.store(codes_ptr + offsets, _to_codes(x, factor), mask=inside)
    if STEP == "amax":
        tl.atomic_max(amax_ptr, largest)


@triton.jit
def _cast_kernel(x_ptr, codes_ptr, scale_ptr, amax_ptr, count, BLOCK: tl.constexpr, GELU: tl.constexpr):
    start = tl.program_id(0)
    factor = _factor_of(tl.load(amax_ptr))
    if start == 0:
        tl.store(scale_ptr, 1.0 / factor)
    offsets = start.to(tl.int64) * BLOCK + tl.max_contiguous(tl.arange(0, BLOCK), _HALVES)
    x = tl.load(x_ptr + offsets, mask=offsets < count, other=0.0).to(tl.float32)
    if GELU:
        x = _gelu_tanh(x)
    tl.store(codes_ptr + offsets, _to_codes(x, factor), mask=offsets < count)


def _launch_rows(x, codes, scale, amax, step, gelu=False, stride=1):
    width = x.shape[-1]
    num_rows = triton.cdiv(x.numel() // width, stride)
    if num_rows:
        _quantise_rows_kernel[(triton.cdiv(num_rows, ROWS_PER_PROGRAM),)](
            x, codes, scale, amax, num_rows, WIDTH=width, BLOCK=triton.next_power_of_2(width), ROWS=ROWS_PER_PROGRAM,
            STRIDE=stride, STEP=step, GELU=gelu, num_warps=ROW_WARPS)


def quantise_rows(x, gelu=False):
    """x [..., K] contiguous -> (codes [..., K], scale [..., 1] fp32)."""
    assert x.is_contiguous()
    codes, scale = torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    _launch_rows(x, codes, scale, scale, "rows", gelu)
    return codes, scale


def quantise_tensor(parts, gelu=False, amax=None, shape=CAST_SHAPE):
    """(codes, scale [] fp32) of tensors [B, n, ...], contiguous, one after the other along n; several only at B = 1.

    `amax` [] fp32 where the largest magnitude, or a bound on it, is known already.
    """
    first = parts[0]
    assert all(part.is_contiguous() for part in parts)
    assert len(parts) == 1 or first.shape[0] == 1
    if amax is None:
        amax = first.new_zeros((), dtype=torch.float32)
        for part in parts:
            _launch_rows(part, part, amax, amax, "amax", gelu)
    lengths = [part.shape[1] for part in parts] if len(parts) > 1 else None
    whole = first.shape if lengths is None else (1, sum(lengths), *first.shape[2:])
    codes = first.new_empty(whole, dtype=torch.float8_e4m3fn)
    scale = first.new_ones((), dtype=torch.float32)
    block, warps = shape
    for part, target in zip(parts, [codes] if lengths is None else codes.split(lengths, dim=1), strict=True):
        if part.numel():
            _cast_kernel[(triton.cdiv(part.numel(), block),)](part, target, scale, amax, part.numel(), BLOCK=block,
                                                              GELU=gelu, num_warps=warps)
    return codes, scale


def sampled_amax(parts):
    """As float8.sampled_amax; tensors are contiguous."""
    amax = parts[0].new_zeros((), dtype=torch.float32)
    for part in parts:
        _launch_rows(part, part, amax, amax, "amax", stride=SAMPLE_STRIDE)
    return SAMPLE_MARGIN * amax


@triton.jit
def _times_vector_kernel(codes_ptr, vector_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    row = tl.program_id(0)
    codes = tl.load(codes_ptr + row.to(tl.int64) * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row, tl.sum(codes * tl.load(vector_ptr + columns, mask=inside, other=0.0), axis=0))


def times_vector(codes, vector):
    """codes [M, K] e4m3 times a vector [K] fp32: [M] fp32."""
    rows, width = codes.shape
    out = vector.new_empty(rows)
    _times_vector_kernel[(rows,)](codes, vector.contiguous(), out, WIDTH=width, BLOCK=triton.next_power_of_2(width),
                                  num_warps=4)
    return out


@triton.jit
def _sum_of_rows_kernel(codes_ptr, sums_ptr, num_rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
                        BLOCK: tl.constexpr):
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    total = tl.zeros((TILE, BLOCK), tl.float32)
    for i in range(0, ROWS, TILE):
        rows = tl.program_id(0) * ROWS + i + tl.arange(0, TILE)
        offsets = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        total += tl.load(codes_ptr + offsets, mask=(rows < num_rows)[:, None] & inside[None, :], other=0.0).to(
            tl.float32)
    tl.store(sums_ptr + tl.program_id(0) * WIDTH + columns, tl.sum(total, axis=0), mask=inside)


def sum_of_rows(codes):
    """codes [..., K] e4m3, contiguous -> fp32 [K], their sum over everything else."""
    width = codes.shape[-1]
    num_rows = codes.numel() // width
    rows, tile, block = 256, 8, 1024
    sums = codes.new_empty(triton.cdiv(num_rows, rows), width, dtype=torch.float32)
    _sum_of_rows_kernel[(triton.cdiv(num_rows, rows), triton.cdiv(width, block))](
        codes, sums, num_rows, WIDTH=width, ROWS=rows, TILE=tile, BLOCK=block, num_warps=4)
    return sums.sum(0)


@triton.jit
def _bounds_kernel(factor_ptr, shift_ptr, bounds_ptr, batch, root, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    amax, stretch, square = 0.0, 0.0, 0.0
    for sample in range(batch):
        factor = tl.abs(tl.load(factor_ptr + sample * WIDTH + columns, mask=inside, other=0.0))
        shift = tl.load(shift_ptr + sample * WIDTH + columns, mask=inside, other=0.0)
        amax = tl.maximum(amax, tl.max(root * factor + tl.abs(shift), axis=0))
        stretch = tl.maximum(stretch, tl.max(factor, axis=0))
        square = tl.maximum(square, tl.sum(shift * shift, axis=0))
    tl.store(bounds_ptr, amax)
    tl.store(bounds_ptr + 1, root * stretch + tl.sqrt(square))


def norm_bounds(factor_BC, shift_BC):
    """As float8.norm_bounds, fp32 contiguous vectors."""
    batch, width = factor_BC.shape
    bounds = factor_BC.new_empty(2)
    _bounds_kernel[(1,)](factor_BC, shift_BC, bounds, batch, width**0.5, WIDTH=width,
                         BLOCK=triton.next_power_of_2(width), num_warps=8)
    return bounds[0], bounds[1]


def update_norm_quantise(x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype, scaling, gather_N=None,
                         residual_dtype=None, warps=NORM_WARPS):
    """x + gate * y (left out where y is None); LayerNorm(x) * factor + shift as (codes [B, N, C], scale, length).

    x as triton_kernels.update_norm returns it comes first; the codes stand in the same order. `scaling` "row" and
    "bound" quantise in the same pass; "tensor" writes the norm in `dtype`, keeps its largest magnitude, and casts in a
    second pass. `length`: of "bound", else None.
    """
    batch, num_tokens, _ = x_BNC.shape
    factor_BC, shift_BC = factor_BC.float().contiguous(), shift_BC.float().contiguous()
    n_BNC = torch.empty_like(x_BNC, dtype=dtype if scaling == "tensor" else torch.float8_e4m3fn)
    scale = x_BNC.new_ones((batch, num_tokens, 1) if scaling == "row" else (), dtype=torch.float32)
    amax = length = None
    if scaling == "bound":
        amax, length = norm_bounds(factor_BC, shift_BC)
    elif scaling == "tensor":
        amax = x_BNC.new_zeros((), dtype=torch.float32)
    x_BNC = launch_update_norm(x_BNC, y_BNC, (gate_BC, factor_BC, shift_BC), gather_N, residual_dtype, n_BNC,
                               {"row": "rows", "bound": "bound", "tensor": "amax"}[scaling], scale, amax, warps)
    if scaling == "tensor":
        return x_BNC, *quantise_tensor([n_BNC], amax=amax), None
    return x_BNC, n_BNC, scale, length
