"""Triton kernels of the residual stream: update + norm + modulation, in bf16 or 8 bits, and RMS norm + rotation.
Contracts: fused.py, float8.py.

A program takes one row and keeps it in registers, so that every tensor crosses device memory once. Blocks of Triton are
powers of two; a row is kept as chunks of one such width, by choice one that divides it. All loads of a row are issued
before its first store. Offsets are said to be contiguous by a few numbers only: otherwise Triton gives a thread 16
bytes of the narrowest type and carries the others through shared memory.
"""

import torch
import triton
import triton.language as tl

from tools.torch_reference.dit import NORM_EPS

# Fastest on an H100 at width 5120 (microbenchmark.py).
NORM_WARPS, ROTATE_WARPS = 4, 4
CHUNK = 1024
FP8_MAX = tl.constexpr(448.0)
TINY = tl.constexpr(1e-30)
# Numbers of the residual stream and of a row of bf16 that make 16 bytes.
_NUMBERS = tl.constexpr(4)
_HALVES = tl.constexpr(8)


def largest_power_of_two_dividing(number):
    return number & -number


def chunk_of(count, most):
    """Width of the chunks of `count` numbers: the largest power of two up to `most` that divides it, but where there
    would be more than 16 of them one that does not.
    """
    chunk = min(largest_power_of_two_dividing(count), most)
    return chunk if count <= 16 * chunk else min(triton.next_power_of_2(count), most)


@triton.jit
def _to_codes(x, factor):
    scaled = tl.minimum(tl.maximum(x * factor, -FP8_MAX), FP8_MAX)
    return scaled.to(tl.float8e4nv)


@triton.jit
def _factor_of(amax):
    """448 / amax, 1 where everything is zero."""
    return tl.where(amax > 0, FP8_MAX / tl.maximum(amax, TINY), 1.0)


@triton.jit
def _updated(x_ptr, y_ptr, gate_ptr, columns, inside, UPDATE: tl.constexpr, GATE: tl.constexpr):
    x = tl.load(x_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if UPDATE:
        y = tl.load(y_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        if GATE:
            y = y * tl.load(gate_ptr + columns, mask=inside, other=0.0, eviction_policy="evict_last")
        x = x + y
    return x


@triton.jit
def _modulated(x, mean, rstd, factor_ptr, shift_ptr, columns, inside):
    factor = tl.load(factor_ptr + columns, mask=inside, other=0.0, eviction_policy="evict_last")
    shift = tl.load(shift_ptr + columns, mask=inside, other=0.0, eviction_policy="evict_last")
    return (x - mean) * rstd * factor + shift


@triton.jit
def _columns(i, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    columns = i * CHUNK + tl.max_contiguous(tl.arange(0, CHUNK), _NUMBERS)
    return columns, columns < WIDTH


@triton.jit
def _square_inside(x, i, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    columns, inside = _columns(i, WIDTH, CHUNK)
    return tl.where(inside, x * x, 0.0)


@triton.jit
def _update_norm_kernel(x_ptr, y_ptr, gate_ptr, factor_ptr, shift_ptr, gather_ptr, out_ptr, n_ptr, scale_ptr, amax_ptr,
                        num_tokens, eps, WIDTH: tl.constexpr, CHUNK: tl.constexpr, UPDATE: tl.constexpr,
                        GATE: tl.constexpr, NORM: tl.constexpr, GATHER: tl.constexpr, WRITE: tl.constexpr):
    """NORM is "no", "yes", or what becomes of the norm: "rows", "amax", "bound" (triton_float8.py)."""
    CHUNKS: tl.constexpr = (WIDTH + CHUNK - 1) // CHUNK
    token, sample = tl.program_id(0), tl.program_id(1)
    row = sample * num_tokens + token
    target = row.to(tl.int64) * WIDTH
    source = target
    if GATHER:
        source = (sample * num_tokens + tl.load(gather_ptr + token)).to(tl.int64) * WIDTH
    xs = ()
    for i in tl.static_range(CHUNKS):
        columns, inside = _columns(i, WIDTH, CHUNK)
        xs = xs + (_updated(x_ptr + source, y_ptr + source, gate_ptr + sample * WIDTH, columns, inside, UPDATE, GATE),)
    if WRITE:
        rounded = ()
        for i in tl.static_range(CHUNKS):
            columns, inside = _columns(i, WIDTH, CHUNK)
            x = xs[i].to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + target + columns, x, mask=inside)
            rounded = rounded + (x.to(tl.float32),)
        xs = rounded
    if NORM != "no":
        _norm(xs, n_ptr + target, factor_ptr + sample * WIDTH, shift_ptr + sample * WIDTH, scale_ptr, amax_ptr, row,
              eps, WIDTH, CHUNK, NORM)


@triton.jit
def _norm(xs, n_ptr, factor_ptr, shift_ptr, scale_ptr, amax_ptr, row, eps, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
          NORM: tl.constexpr):
    CHUNKS: tl.constexpr = (WIDTH + CHUNK - 1) // CHUNK
    total = xs[0]
    for i in tl.static_range(1, CHUNKS):
        total += xs[i]
    mean = tl.sum(total, axis=0) / WIDTH
    square = _square_inside(xs[0] - mean, 0, WIDTH, CHUNK)
    for i in tl.static_range(1, CHUNKS):
        square += _square_inside(xs[i] - mean, i, WIDTH, CHUNK)
    rstd = tl.rsqrt(tl.sum(square, axis=0) / WIDTH + eps)
    if NORM == "bound":
        codes_factor = _factor_of(tl.load(amax_ptr))
        if row == 0:
            tl.store(scale_ptr, 1.0 / codes_factor)
    if NORM == "rows" or NORM == "amax":
        most = tl.abs(xs[0]) * 0.0
        for i in tl.static_range(CHUNKS):
            columns, inside = _columns(i, WIDTH, CHUNK)
            n = _modulated(xs[i], mean, rstd, factor_ptr, shift_ptr, columns, inside)
            if NORM == "amax":
                n = n.to(n_ptr.dtype.element_ty).to(tl.float32)
            most = tl.maximum(most, tl.where(inside, tl.abs(n), 0.0))
        largest = tl.max(most, axis=0)
        if NORM == "amax":
            tl.atomic_max(amax_ptr, largest)
        else:
            codes_factor = _factor_of(largest)
            tl.store(scale_ptr + row, 1.0 / codes_factor)
    for i in tl.static_range(CHUNKS):
        columns, inside = _columns(i, WIDTH, CHUNK)
        n = _modulated(xs[i], mean, rstd, factor_ptr, shift_ptr, columns, inside)
        if NORM == "rows" or NORM == "bound":
            tl.store(n_ptr + columns, _to_codes(n, codes_factor), mask=inside)
        else:
            tl.store(n_ptr + columns, n.to(n_ptr.dtype.element_ty), mask=inside)


def launch_update_norm(x_BNC, y_BNC, vectors_BC, gather_N, residual_dtype, n_BNC, step, scale=None, amax=None,
                       warps=NORM_WARPS):
    """Runs the kernel: x + gate * y and what becomes of its norm in `n_BNC`; `vectors_BC` are gate, factor, shift.

    Returns where the updated x went: x itself where nothing else moves, else a new tensor.
    """
    batch, num_tokens, width = x_BNC.shape
    residual_dtype = residual_dtype or x_BNC.dtype
    assert x_BNC.is_contiguous()
    assert y_BNC is None or (y_BNC.is_contiguous() and y_BNC.shape == x_BNC.shape)
    assert gather_N is None or (gather_N.shape == x_BNC.shape[1:2] and gather_N.is_contiguous())
    moves = gather_N is not None or residual_dtype != x_BNC.dtype
    out_BNC = torch.empty_like(x_BNC, dtype=residual_dtype) if moves else x_BNC
    if out_BNC.numel():
        gate, factor, shift = (_vectors(v, batch, width) for v in vectors_BC)
        unused = x_BNC
        _update_norm_kernel[(num_tokens, batch)](
            x_BNC, _or(y_BNC, unused), _or(gate, unused), _or(factor, unused), _or(shift, unused),
            _or(gather_N, unused), out_BNC, _or(n_BNC, unused), _or(scale, unused), _or(amax, unused), num_tokens,
            NORM_EPS, WIDTH=width, CHUNK=chunk_of(width, CHUNK), UPDATE=y_BNC is not None, GATE=gate is not None,
            NORM=step, GATHER=gather_N is not None, WRITE=y_BNC is not None or moves, num_warps=warps)
    return out_BNC


def _or(tensor, other):
    return other if tensor is None else tensor


def _vectors(vector_BC, batch, width):
    return None if vector_BC is None else vector_BC.float().expand(batch, width).contiguous()


def update_norm(x_BNC, y_BNC, gate_BC, factor_BC, shift_BC, dtype, gather_N=None, residual_dtype=None,
                warps=NORM_WARPS):
    """x + gate * y, and LayerNorm(x) * factor + shift in `dtype`; each part is left out where it is None.

    Returns (x, normed or None): x in place or, with `gather_N`, a new one with token gather[i] in place i, as normed;
    a new one too where `residual_dtype` is not its own.
    """
    n_BNC = None if factor_BC is None else torch.empty_like(x_BNC, dtype=dtype)
    x_BNC = launch_update_norm(x_BNC, y_BNC, (gate_BC, factor_BC, shift_BC), gather_N, residual_dtype, n_BNC,
                               "no" if n_BNC is None else "yes", warps=warps)
    return x_BNC, n_BNC


@triton.jit
def _scale_rows_kernel(x_ptr, factor_ptr, out_ptr, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    row = tl.program_id(0)
    factor = tl.load(factor_ptr + row)
    x_ptr += row.to(tl.int64) * WIDTH
    out_ptr += row.to(tl.int64) * WIDTH
    for i in tl.static_range((WIDTH + CHUNK - 1) // CHUNK):
        columns = i * CHUNK + tl.max_contiguous(tl.arange(0, CHUNK), _HALVES)
        x = tl.load(x_ptr + columns, mask=columns < WIDTH).to(tl.float32)
        tl.store(out_ptr + columns, (x * factor).to(out_ptr.dtype.element_ty), mask=columns < WIDTH)


def scale_rows(x_NK, factor_N):
    """Rows times fp32 factors, rounded to the dtype of x, in a new tensor."""
    assert x_NK.is_contiguous()
    assert factor_N.is_contiguous()
    out_NK = torch.empty_like(x_NK)
    rows, width = x_NK.shape
    if x_NK.numel():
        _scale_rows_kernel[(rows,)](x_NK, factor_N, out_NK, WIDTH=width, CHUNK=chunk_of(width, 2 * CHUNK))
    return out_NK


@triton.jit
def _rotated(x, cos, sin, CHUNK: tl.constexpr, PAIRS: tl.constexpr):
    even, odd = tl.split(tl.reshape(x, (CHUNK, PAIRS, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (CHUNK, PAIRS * 2))


@triton.jit
def _rotate_kernel(x_ptr, weight_ptr, cos_ptr, sin_ptr, mean_ptr, out_ptr, scale_ptr, amax_ptr, num_tokens, eps,
                   HEADS: tl.constexpr, CHUNK: tl.constexpr, PAIRS: tl.constexpr, STRIDE: tl.constexpr,
                   ROTATE: tl.constexpr, CENTRE: tl.constexpr, STEP: tl.constexpr):
    """RMS norm and rotation of a row as [H, D], in chunks of heads. STEP is "numbers" (as they are, in the dtype of
    `out`), "cast" (e4m3 at the largest magnitudes [H] given) or "amax" (only those, by atomic maximum).
    """
    D: tl.constexpr = PAIRS * 2
    CHUNKS: tl.constexpr = HEADS // CHUNK
    row, sample = tl.program_id(0), tl.program_id(1)
    token = row * STRIDE
    x_ptr += (sample * num_tokens + token).to(tl.int64) * (HEADS * D)
    out_ptr += (sample * tl.num_programs(0) + row).to(tl.int64) * (HEADS * D)
    mean_ptr += sample * (HEADS * D)
    head = tl.arange(0, CHUNK)
    columns = head[:, None] * D + tl.max_contiguous(tl.arange(0, D), _HALVES)[None, :]
    xs = ()
    for i in tl.static_range(CHUNKS):
        xs = xs + (tl.load(x_ptr + i * CHUNK * D + columns).to(tl.float32),)
    square = xs[0] * xs[0]
    for i in tl.static_range(1, CHUNKS):
        square += xs[i] * xs[i]
    if ROTATE:
        pairs = tl.arange(0, PAIRS)[None, :]
        cos = tl.load(cos_ptr + token * PAIRS + pairs)
        sin = tl.load(sin_ptr + token * PAIRS + pairs)
    rrms = tl.rsqrt(tl.sum(tl.sum(square, axis=1), axis=0) / (HEADS * D) + eps)
    for i in tl.static_range(CHUNKS):
        here = i * CHUNK * D + columns
        x = xs[i] * rrms * tl.load(weight_ptr + here, eviction_policy="evict_last").to(tl.float32)
        if ROTATE:
            x = _rotated(x, cos, sin, CHUNK, PAIRS)
        if CENTRE:
            x = x - tl.load(mean_ptr + here, eviction_policy="evict_last")
        if STEP == "amax":
            tl.atomic_max(amax_ptr + i * CHUNK + head, tl.max(tl.abs(x), axis=1))
        elif STEP == "cast":
            factor = _factor_of(tl.load(amax_ptr + i * CHUNK + head))
            if (row == 0) & (sample == 0):
                tl.store(scale_ptr + i * CHUNK + head, 1.0 / factor)
            tl.store(out_ptr + here, (x * factor[:, None]).to(tl.float8e4nv))
        else:
            tl.store(out_ptr + here, x.to(out_ptr.dtype.element_ty))


def launch_rotate(x_BNC, weight_C, tables, num_heads, out, step="numbers", mean_BC=None, scale=None, amax=None,
                  stride=1, warps=ROTATE_WARPS):
    """Runs the kernel on every `stride`-th token; `tables` (cos, sin) [N, D/2] or Nones. D must be a power of two."""
    batch, num_tokens, width = x_BNC.shape
    cos_Nd, sin_Nd = tables
    pairs = width // num_heads // 2
    assert x_BNC.is_contiguous()
    assert width == 2 * pairs * num_heads
    assert pairs == largest_power_of_two_dividing(pairs), "the head width must be a power of two"
    if x_BNC.numel():
        unused = weight_C
        _rotate_kernel[(triton.cdiv(num_tokens, stride), batch)](
            x_BNC, weight_C, _or(cos_Nd, unused), _or(sin_Nd, unused), _or(mean_BC, unused), out, _or(scale, unused),
            _or(amax, unused), num_tokens, NORM_EPS, HEADS=num_heads,
            CHUNK=min(largest_power_of_two_dividing(num_heads), max(1, CHUNK // (2 * pairs))), PAIRS=pairs,
            STRIDE=stride, ROTATE=cos_Nd is not None, CENTRE=mean_BC is not None, STEP=step, num_warps=warps)


def rms_norm_rotate(x_BNC, weight_C, cos_Nd, sin_Nd, warps=ROTATE_WARPS):
    """RMS norm over C and, with tables, rotation of the interleaved pairs; in place, returns x.

    D (with tables) must be a power of two.
    """
    width = x_BNC.shape[-1]
    # Without rotation any heads will do.
    head_dim = min(largest_power_of_two_dividing(width), CHUNK) if cos_Nd is None else 2 * cos_Nd.shape[-1]
    assert width % head_dim == 0
    launch_rotate(x_BNC, weight_C, (cos_Nd, sin_Nd), width // head_dim, x_BNC, warps=warps)
    return x_BNC
