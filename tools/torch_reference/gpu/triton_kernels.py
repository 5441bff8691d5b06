"""Triton kernels of the residual stream: update + norm + modulation, in bf16 or 8 bits, and RMS norm + rotation.
Contracts: fused.py, float8.py.

A program takes one row and keeps it in registers, so that every tensor crosses device memory once. Blocks of Triton are
powers of two; a row of another width is kept as two, the largest power of two in it and the rest, so that hardly a lane
is idle. All loads of a row are issued before its first store.
"""

import torch
import triton
import triton.language as tl

from tools.torch_reference.dit import NORM_EPS

# Fastest on an H100 at width 5120 (microbenchmark.py).
NORM_WARPS, ROTATE_WARPS = 4, 4
FP8_MAX = tl.constexpr(448.0)
TINY = tl.constexpr(1e-30)


def halves(width):
    """(largest power of two in `width`, next power of two of the rest or 0)."""
    first = 1 << (width.bit_length() - 1)
    return first, triton.next_power_of_2(width - first) if width > first else 0


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
def _update_norm_kernel(x_ptr, y_ptr, gate_ptr, factor_ptr, shift_ptr, gather_ptr, out_ptr, n_ptr, scale_ptr, amax_ptr,
                        num_tokens, eps, WIDTH: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
                        UPDATE: tl.constexpr, GATE: tl.constexpr, NORM: tl.constexpr, GATHER: tl.constexpr,
                        WRITE: tl.constexpr):
    """NORM is "no", "yes", or what becomes of the norm: "rows", "amax", "bound" (triton_float8.py)."""
    token, sample = tl.program_id(0), tl.program_id(1)
    row = sample * num_tokens + token
    target = row.to(tl.int64) * WIDTH
    source = target
    if GATHER:
        source = (sample * num_tokens + tl.load(gather_ptr + token)).to(tl.int64) * WIDTH
    a = tl.arange(0, FIRST)
    everywhere = a < WIDTH
    xa = _updated(x_ptr + source, y_ptr + source, gate_ptr + sample * WIDTH, a, everywhere, UPDATE, GATE)
    if REST > 0:
        b = FIRST + tl.arange(0, REST)
        inside = b < WIDTH
        xb = _updated(x_ptr + source, y_ptr + source, gate_ptr + sample * WIDTH, b, inside, UPDATE, GATE)
    if WRITE:
        rounded = xa.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + target + a, rounded, mask=everywhere)
        xa = rounded.to(tl.float32)
        if REST > 0:
            rounded = xb.to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + target + b, rounded, mask=inside)
            xb = rounded.to(tl.float32)
    if NORM != "no":
        factor_ptr += sample * WIDTH
        shift_ptr += sample * WIDTH
        total = tl.sum(xa, axis=0)
        if REST > 0:
            total += tl.sum(xb, axis=0)
        mean = total / WIDTH
        square = tl.sum((xa - mean) * (xa - mean), axis=0)
        if REST > 0:
            square += tl.sum(tl.where(inside, (xb - mean) * (xb - mean), 0.0), axis=0)
        rstd = tl.rsqrt(square / WIDTH + eps)
        na = _modulated(xa, mean, rstd, factor_ptr, shift_ptr, a, everywhere)
        if REST > 0:
            nb = tl.where(inside, _modulated(xb, mean, rstd, factor_ptr, shift_ptr, b, inside), 0.0)
        if NORM == "rows" or NORM == "amax":
            if NORM == "amax":
                na = na.to(n_ptr.dtype.element_ty).to(tl.float32)
            largest = tl.max(tl.abs(na), axis=0)
            if REST > 0:
                if NORM == "amax":
                    nb = nb.to(n_ptr.dtype.element_ty).to(tl.float32)
                largest = tl.maximum(largest, tl.max(tl.abs(nb), axis=0))
        if NORM == "amax":
            tl.atomic_max(amax_ptr, largest)
        if NORM == "rows":
            codes_factor = _factor_of(largest)
            tl.store(scale_ptr + row, 1.0 / codes_factor)
        if NORM == "bound":
            codes_factor = _factor_of(tl.load(amax_ptr))
            if row == 0:
                tl.store(scale_ptr, 1.0 / codes_factor)
        if NORM == "rows" or NORM == "bound":
            tl.store(n_ptr + target + a, _to_codes(na, codes_factor), mask=everywhere)
            if REST > 0:
                tl.store(n_ptr + target + b, _to_codes(nb, codes_factor), mask=inside)
        else:
            tl.store(n_ptr + target + a, na.to(n_ptr.dtype.element_ty), mask=everywhere)
            if REST > 0:
                tl.store(n_ptr + target + b, nb.to(n_ptr.dtype.element_ty), mask=inside)


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
        first, rest = halves(width)
        _update_norm_kernel[(num_tokens, batch)](
            x_BNC, _or(y_BNC, unused), _or(gate, unused), _or(factor, unused), _or(shift, unused),
            _or(gather_N, unused), out_BNC, _or(n_BNC, unused), _or(scale, unused), _or(amax, unused), num_tokens,
            NORM_EPS, WIDTH=width, FIRST=first, REST=rest, UPDATE=y_BNC is not None, GATE=gate is not None, NORM=step,
            GATHER=gather_N is not None, WRITE=y_BNC is not None or moves, num_warps=warps)
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
def _rotated(x, cos_ptr, sin_ptr, token, HEADS: tl.constexpr, PAIRS: tl.constexpr):
    pairs = tl.arange(0, PAIRS)[None, :]
    even, odd = tl.split(tl.reshape(x, (HEADS, PAIRS, 2)))
    cos = tl.load(cos_ptr + token * PAIRS + pairs)
    sin = tl.load(sin_ptr + token * PAIRS + pairs)
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (HEADS, PAIRS * 2))


@triton.jit
def _rms_norm_rotate_kernel(x_ptr, weight_ptr, cos_ptr, sin_ptr, num_tokens, eps, HEADS: tl.constexpr,
                            FIRST: tl.constexpr, REST: tl.constexpr, PAIRS: tl.constexpr, ROTATE: tl.constexpr):
    WIDTH: tl.constexpr = HEADS * PAIRS * 2
    token, sample = tl.program_id(0), tl.program_id(1)
    x_ptr += (sample * num_tokens + token).to(tl.int64) * WIDTH
    inner = tl.arange(0, PAIRS * 2)[None, :]
    a = tl.arange(0, FIRST)[:, None] * (PAIRS * 2) + inner
    xa = tl.load(x_ptr + a).to(tl.float32)
    square = tl.sum(tl.sum(xa * xa, axis=1), axis=0)
    if REST > 0:
        b = (FIRST + tl.arange(0, REST)[:, None]) * (PAIRS * 2) + inner
        inside = b < WIDTH
        xb = tl.load(x_ptr + b, mask=inside, other=0.0).to(tl.float32)
        square += tl.sum(tl.sum(xb * xb, axis=1), axis=0)
    rrms = tl.rsqrt(square / WIDTH + eps)
    xa = xa * rrms * tl.load(weight_ptr + a, eviction_policy="evict_last").to(tl.float32)
    if ROTATE:
        xa = _rotated(xa, cos_ptr, sin_ptr, token, FIRST, PAIRS)
    tl.store(x_ptr + a, xa.to(x_ptr.dtype.element_ty))
    if REST > 0:
        xb = xb * rrms * tl.load(weight_ptr + b, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
        if ROTATE:
            xb = _rotated(xb, cos_ptr, sin_ptr, token, REST, PAIRS)
        tl.store(x_ptr + b, xb.to(x_ptr.dtype.element_ty), mask=inside)


def rms_norm_rotate(x_BNC, weight_C, cos_Nd, sin_Nd, warps=ROTATE_WARPS):
    """RMS norm over C and, with tables, rotation of the interleaved pairs; in place, returns x.

    D (with tables) must be a power of two.
    """
    batch, num_tokens, width = x_BNC.shape
    rotated = cos_Nd is not None
    pairs = cos_Nd.shape[-1] if rotated else largest_power_of_two_dividing(width) // 2
    assert x_BNC.is_contiguous()
    assert width % (2 * pairs) == 0
    if x_BNC.numel():
        heads = width // (2 * pairs)
        first, rest = halves(heads)
        _rms_norm_rotate_kernel[(num_tokens, batch)](
            x_BNC, weight_C, cos_Nd if rotated else weight_C, sin_Nd if rotated else weight_C, num_tokens, NORM_EPS,
            HEADS=heads, FIRST=first, REST=rest, PAIRS=pairs, ROTATE=rotated, num_warps=warps)
    return x_BNC


def largest_power_of_two_dividing(number):
    return number & -number
