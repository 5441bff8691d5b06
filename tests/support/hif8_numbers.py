"""Numbers that are hard to round to HiF8, and what the independent package en_dtypes makes of them."""

import en_dtypes
import numpy as np

from ospnext_ms import hif8_format

BF16 = (np.arange(65536, dtype=np.uint32) << 16).view(np.float32)


def reference_codes(x):
    with np.errstate(all="ignore"):
        return x.astype(en_dtypes.hifloat8).view(np.uint8)


def random_bits(count, seed):
    """fp32 numbers of random bits: every exponent, NaNs and denormals among them."""
    return np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32).view(np.float32)


def hard_numbers():
    """Every HiF8 number, every tie between two of them, and the fp32 numbers beside all of these."""
    values = np.sort(hif8_format.values()[np.isfinite(hif8_format.values())])
    centres = np.concatenate([values, (values[1:] + values[:-1]) / 2, [-40960, 40960, 2.0**-23, -(2.0**-23)]])
    centres = centres.astype(np.float32)
    beside = [np.nextafter(centres, np.float32(side)) for side in (-np.inf, np.inf)]
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)
    return np.concatenate([centres, *beside, odd])


def same(a, b):
    return np.array_equal(a, b, equal_nan=True)
