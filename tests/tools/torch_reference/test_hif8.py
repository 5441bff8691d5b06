"""The reference's rounding to HiF8 against the independent package en_dtypes."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference networks need PyTorch")

from ospnext_ms.hif8_format import decode  # noqa: E402
from tests.support.hif8_numbers import BF16, hard_numbers, random_bits, reference_codes, same  # noqa: E402
from tools.torch_reference.hif8 import round_to_hif8  # noqa: E402


def test_torch_reference_rounds_the_same():
    x = np.concatenate([BF16, hard_numbers(), random_bits(1_000_000, seed=3)])
    assert same(round_to_hif8(torch.from_numpy(x)).numpy(), decode(reference_codes(x)))
