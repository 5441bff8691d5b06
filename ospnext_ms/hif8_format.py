"""The HiFloat8 number format (arXiv 2409.16626) in NumPy: codes, values and roundings. No framework.

A code is sign, dot field (how wide the exponent is), exponent, mantissa. With |value| = 2^E * 1.m, |E| <= 3 leaves 3
bits of mantissa, |E| <= 7 two, |E| <= 15 one, and 2^-22 ... 2^-16 none. There is one zero (0x00), one NaN (0x80), and
two infinities (0x6F, 0xEF); the largest finite value is 32768.

Rounding to nearest takes ties away from zero: |x| >= 40960 becomes infinite, |x| < 2^-23 zero, 2^-23 itself 2^-22. Such
a rounding looks at one bit below the mantissa and at nothing further down. So the upper 16 bits of an fp32 number,
which are a bf16 number, decide the code, and 65,536 table entries hold the whole rounding.
"""

import sys
from functools import cache
from typing import Literal

import numpy as np

ZERO, NAN, INF, NEGATIVE_INF = 0x00, 0x80, 0x6F, 0xEF
MAX_VALUE = 32768.0
MIN_VALUE = 2.0**-22
OVERFLOW = 40960.0
# Largest scale: beyond it 1 / scale would not be a normal fp32 number.
MAX_SCALE = 2.0**126
# Where a tensor's largest number is scaled to: the top of the band with 3 mantissa bits, and with 2.
SCALE_MAX_FORWARD = 15.0
SCALE_MAX_BACKWARD = 224.0
ROUNDINGS = ("nearest", "stochastic")
# What computes: the device itself, an exact emulation, or the device where a probe agrees with the emulation.
BackendName = Literal["auto", "native", "emulate"]
BLOCK = 1 << 15
# Which of a number's two halves is the upper one.
UPPER_HALF = 1 if sys.byteorder == "little" else 0


@cache
def values() -> np.ndarray:
    """Value of every code: fp32 [256], read-only."""
    table = np.empty(256, np.float32)
    for code in range(128):
        table[code] = _value(code)
        table[code | 0x80] = -table[code]
    table[NAN] = np.nan
    return _frozen(table)


def _value(code: int) -> float:
    """Value of a code without sign, from its fields (table 2 of the paper)."""
    if code == INF:
        return np.inf
    if code < 0b0001_000:
        return 2.0 ** (code - 23) if code else 0.0
    if code < 0b0010_000:
        return 1 + (code & 7) / 8
    # The dot field 001, 01, 10 or 11 says that the exponent has 1 to 4 bits: its sign and what follows a leading 1.
    if code < 0b0100_000:
        exponent_bits, rest_bits = 1, 4
    else:
        exponent_bits, rest_bits = (code >> 5) + 1, 5
    mantissa_bits = rest_bits - exponent_bits
    rest = code & ((1 << rest_bits) - 1)
    exponent, mantissa = rest >> mantissa_bits, rest & ((1 << mantissa_bits) - 1)
    negative = exponent >> (exponent_bits - 1)
    magnitude = (1 << (exponent_bits - 1)) | (exponent & ((1 << (exponent_bits - 1)) - 1))
    return 2.0 ** (-magnitude if negative else magnitude) * (1 + mantissa / (1 << mantissa_bits))


@cache
def nearest_codes() -> np.ndarray:
    """Code of every bf16 number by its bits, and of every fp32 number by its upper 16: uint8 [65536], read-only."""
    numbers = (np.arange(65536, dtype=np.uint32) << 16).view(np.float32)
    codes = _search(_nearest_magnitude(np.abs(numbers)), numbers < 0)
    return _frozen(np.where(np.isnan(numbers), np.uint8(NAN), codes))


@cache
def nearest_values() -> np.ndarray:
    """Value of `nearest_codes`: fp32 [65536], read-only."""
    return _frozen(values()[nearest_codes()])


def encode(x: np.ndarray, rounding: str = "nearest", seed: int | None = None) -> np.ndarray:
    """Codes of the numbers: uint8, shape of x.

    Args:
        x: float array; float64 is not rounded to fp32 first.
        rounding: "nearest" (ties away from zero) or "stochastic": up or down with probabilities that make the expected
            value x. Beyond 32768 stochastic rounding is to nearest.
        seed: of stochastic rounding; the same seed gives the same codes.

    Raises:
        ValueError: x is not floating point, an unknown rounding, or a seed where none or no seed where one is needed.
    """
    x = as_float32(x)
    if check_rounding(rounding, seed) == "nearest":
        codes = nearest_codes()[x.view(np.uint32) >> 16]
        # A NaN whose payload is in the lower half alone has the upper half of an infinity.
        return np.where(np.isnan(x), np.uint8(NAN), codes)
    magnitude = stochastic_magnitude(np.abs(x), uniform_noise(x.shape, seed))
    return np.where(np.isnan(x), np.uint8(NAN), _search(magnitude, x < 0))


def decode(codes: np.ndarray) -> np.ndarray:
    """Values of the codes: fp32, shape of `codes`. Raises ValueError where they are not uint8."""
    codes = np.asarray(codes)
    if codes.dtype != np.uint8:
        raise ValueError(f"HiF8 codes have dtype {codes.dtype}; expected uint8")
    out = np.empty(codes.shape, np.float32)
    flat, results = codes.reshape(-1), out.reshape(-1)
    # Block by block, as NumPy first widens what it takes by.
    for start in range(0, codes.size, BLOCK):
        np.take(values(), flat[start : start + BLOCK], out=results[start : start + BLOCK], mode="clip")
    return out


def round_nearest(x: np.ndarray, scale: np.floating | float | None = None, rescale: bool = False) -> np.ndarray:
    """Nearest HiF8 value of every x * scale, divided by scale again with `rescale`: fp32, shape of x.

    x is fp32. A signalling NaN, without a scale, may become an infinity.
    """
    x = np.ascontiguousarray(x)
    out = np.empty_like(x)
    numbers, results, table = x.reshape(-1), out.reshape(-1), nearest_values()
    # Block by block, so that what one pass leaves is in the cache for the next.
    for start in range(0, x.size, BLOCK):
        block, result = numbers[start : start + BLOCK], results[start : start + BLOCK]
        if scale is not None:
            block = block * scale
        np.take(table, block.view(np.uint16)[UPPER_HALF::2], out=result, mode="clip")
        if rescale:
            result /= scale
    return out


def scale_of(amax: np.floating | float, scale_max: float) -> np.float32:
    """Scale that brings `amax`, a number, to `scale_max`: fp32; 1 where amax is 0. ValueError: amax is not finite."""
    if not np.isfinite(amax):
        raise ValueError(f"the largest absolute value is {amax}; HiF8 scaling needs finite numbers")
    return np.float32(1) if amax == 0 else min(np.float32(scale_max) / np.float32(amax), np.float32(MAX_SCALE))


def encode_scaled(x: np.ndarray, scale_max: float) -> tuple[np.ndarray, np.ndarray]:
    """(codes uint8, shape of x, and scale fp32 [1]) of fp32 numbers under per-tensor scaling: what x * scale rounds to,
    where scale brings the largest |x| to `scale_max`. ValueError: numbers that are not finite."""
    scale = scale_of(max(x.max(), -x.min()) if x.size else np.float32(0), scale_max)
    codes = np.empty(x.shape, np.uint8)
    numbers, results = np.ascontiguousarray(x).reshape(-1), codes.reshape(-1)
    for start in range(0, x.size, BLOCK):
        block = numbers[start : start + BLOCK] * scale
        np.take(nearest_codes(), block.view(np.uint16)[UPPER_HALF::2], out=results[start : start + BLOCK], mode="clip")
    return codes, np.array([scale], np.float32)


def check_rounding(rounding: str, seed: int | None) -> str:
    """`rounding`, if it is one and goes with the seed; else ValueError."""
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding is {rounding!r}; valid: {', '.join(map(repr, ROUNDINGS))}")
    if (seed is None) == (rounding == "stochastic"):
        raise ValueError(f"seed is {seed!r} and rounding {rounding!r}; a seed goes with stochastic rounding, always")
    return rounding


def uniform_noise(shape: tuple[int, ...], seed: int | None) -> np.ndarray:
    """What stochastic rounding adds before it cuts off: fp32 in [0, 1)."""
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def stochastic_magnitude(magnitude: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """|x| rounded up where its fraction of a step and the noise reach 1, fp32; NaN stays NaN."""
    finite = np.where(magnitude <= MAX_VALUE, magnitude, 0).astype(np.float32)
    step = _steps(finite)
    # In float64, because in fp32 a fraction just below 1 - noise would round up to 1.
    rounded = np.floor(finite / step + noise.astype(np.float64)) * step
    return np.where(magnitude <= MAX_VALUE, rounded, _nearest_magnitude(magnitude)).astype(np.float32)


def as_float32(x: np.ndarray) -> np.ndarray:
    """A float array as contiguous fp32 with the same HiF8 roundings; ValueError for what is not floats."""
    x = np.asarray(x)
    if x.dtype.kind != "f":
        raise ValueError(f"HiF8 encodes floating-point numbers, not {x.dtype}")
    if x.dtype.itemsize <= 4:
        return np.ascontiguousarray(x, np.float32)
    with np.errstate(over="ignore"):
        single = x.astype(np.float32)
    # Rounding to fp32 may reach a tie that x is below of: take the fp32 number next to x towards zero.
    outwards = np.abs(single) > np.abs(x)
    return np.ascontiguousarray(np.where(outwards, np.nextafter(single, np.float32(0)), single))


def _steps(magnitude: np.ndarray) -> np.ndarray:
    """Distance of HiF8 values around |x|, from the side of zero; float64."""
    _, exponent = np.frexp(np.maximum(magnitude, MIN_VALUE))
    exponent = exponent.astype(np.int64) - 1
    distance = np.abs(exponent)
    mantissa_bits = (distance < 16) * 1 + (distance < 8) * 1 + (distance < 4) * 1
    return np.ldexp(1.0, exponent - mantissa_bits)


def _nearest_magnitude(magnitude: np.ndarray) -> np.ndarray:
    """|x| rounded to nearest, ties away; NaN stays NaN."""
    finite = np.where(magnitude < OVERFLOW, magnitude, 0)
    step = _steps(finite)
    rounded = np.floor(finite / step + 0.5) * step
    return np.where(magnitude < OVERFLOW, rounded, np.where(np.isnan(magnitude), np.nan, np.inf))


def _search(magnitude: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Codes of HiF8 values given as |x| and sign; NaN gives any code."""
    order = np.argsort(values()[:128], kind="stable")
    position = np.searchsorted(values()[order], np.nan_to_num(magnitude, nan=0.0, posinf=np.inf))
    codes = order[np.minimum(position, 127)].astype(np.uint8)
    return codes | np.where(negative & (codes != ZERO), np.uint8(0x80), np.uint8(0))


def _frozen(table: np.ndarray) -> np.ndarray:
    table.flags.writeable = False
    return table
