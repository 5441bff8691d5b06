"""The tests of the dry run fail on code with the faults that they forbid; see planted.py."""

import pytest

from tests.support.ascend import NEEDS_DRY_RUN
from tests.tools.ascend_dry_run.checks import (
    GRADIENT,
    NATIVE_BLOCK,
    check_forward,
    check_native_gradient,
    check_recomputed_gradient,
)
from tools.ascend_dry_run.collectives import first_difference
from tools.ascend_dry_run.run import run_case

pytestmark = [pytest.mark.framework, pytest.mark.slow, NEEDS_DRY_RUN]


def planted(fault, case, options, **world):
    """Report of a case on code with one of the faults."""
    return run_case(case, options, program=("tests.tools.ascend_dry_run.planted", fault), **world)


def test_an_update_with_a_derived_gradient_is_copied():
    """By five operators more a block, on the legacy path."""
    report = planted("update-derived", "gradient", GRADIENT)
    assert report.error is None
    with pytest.raises(AssertionError, match="legacy"):
        check_recomputed_gradient(report)


def test_blocks_that_are_compiled_apart_keep_what_recomputation_should_free():
    report = planted("blocks-apart", "gradient", GRADIENT)
    with pytest.raises(AssertionError, match="frees too little"):
        check_recomputed_gradient(report)


def test_a_cast_to_fp64_is_counted():
    report = planted("fp64", "forward", {"num_layers": 1, "num_full_blocks": 0})
    with pytest.raises(AssertionError, match="fp64"):
        check_forward(report)


def test_a_native_product_by_quant_matmul_with_keywords_does_not_compile():
    report = planted("quant-matmul", "gradient", NATIVE_BLOCK)
    with pytest.raises(AssertionError, match="compile"):
        check_native_gradient(report)


def test_infinities_that_become_a_constant_are_noticed():
    report = planted("infinities", "gradient", NATIVE_BLOCK)
    with pytest.raises(AssertionError, match="is kept"):
        check_native_gradient(report)


def test_an_exchange_that_one_rank_alone_makes_is_noticed():
    options = {"degrees": (2, 1, 2), "num_layers": 2, "num_full_blocks": 0}
    reports = {0: run_case("gradient", options, rank=0, size=2),
               1: planted("exchange-alone", "gradient", options, rank=1, size=2)}
    assert not any(report.error for report in reports.values())
    assert "on rank 0 and" in first_difference({rank: report.collectives for rank, report in reports.items()})
