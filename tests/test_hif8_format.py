"""The HiF8 numbers against the table of the format and the independent package en_dtypes."""

import csv

import en_dtypes
import numpy as np
import pytest

from ospnext_ms import hif8_format as hif8
from ospnext_ms.hif8_format import decode, encode
from tests.support.hif8_numbers import BF16, random_bits, reference_codes, same
from tests.support.paths import FACTS

VALUES = FACTS / "hif8_values.csv"
RANDOM_NUMBERS = 10_000_000


def test_all_codes_decode_as_the_table_and_as_en_dtypes():
    with VALUES.open() as file:
        table = np.array([float(row["value"]) for row in csv.DictReader(file)], np.float32)
    codes = np.arange(256, dtype=np.uint8)
    assert same(decode(codes), table)
    assert same(decode(codes), codes.view(en_dtypes.hifloat8).astype(np.float32))


def test_values_are_their_own_codes():
    codes = np.arange(256, dtype=np.uint8)
    assert np.array_equal(encode(decode(codes)), codes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_bf16_numbers_encode_as_en_dtypes(dtype):
    assert np.array_equal(encode(BF16.astype(dtype)), reference_codes(BF16))


def test_ten_million_random_numbers_encode_as_en_dtypes():
    x = random_bits(RANDOM_NUMBERS, seed=0)
    assert np.array_equal(encode(x), reference_codes(x))


def test_ties_go_away_from_zero():
    x = np.array([2.0**-23, 1.0625, 17.0, -17.0, 1.5 * 2.0**-20, 40960, 40959.996], np.float32)
    assert np.array_equal(decode(encode(x)), [2.0**-22, 1.125, 16.0, -16.0, 2.0**-19, np.inf, 32768])


def test_a_float64_number_just_below_a_tie_goes_down():
    assert decode(encode(np.array([1.0625 - 1e-12]))) == 1.0


def test_negative_zero_and_underflow_become_the_one_zero():
    assert np.array_equal(encode(np.array([-0.0, -1e-10, 1e-45], np.float32)), [0, 0, 0])


@pytest.mark.parametrize("x", [0.3, -1.4, 21.0, 0.75 * 2.0**-22, 1e-7, 1000.0])
def test_stochastic_rounding_is_unbiased_and_goes_to_neighbours(x):
    count = 40_000
    rounded = decode(encode(np.full(count, x, np.float32), "stochastic", seed=5))
    below, above = np.unique(rounded)
    values = np.sort(hif8.values()[np.isfinite(hif8.values())])
    assert np.searchsorted(values, above) == np.searchsorted(values, below) + 1
    assert abs(rounded.mean() - x) < 4.5 * (above - below) / 2 / np.sqrt(count)


def test_stochastic_rounding_follows_its_seed_and_keeps_what_is_exact():
    x = random_bits(50_000, seed=4)
    assert np.array_equal(encode(x, "stochastic", seed=1), encode(x, "stochastic", seed=1))
    assert not np.array_equal(encode(x, "stochastic", seed=1), encode(x, "stochastic", seed=2))
    codes = np.arange(256, dtype=np.uint8)
    assert np.array_equal(encode(decode(codes), "stochastic", seed=1), codes)
    beyond = np.array([np.nan, np.inf, -np.inf, 1e9, 50000, -50000, 34000], np.float32)
    assert np.array_equal(encode(beyond, "stochastic", seed=1), encode(beyond))
