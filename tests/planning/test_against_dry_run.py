"""What `plan` counts against what MindSpore plans for Ascend: as recorded in docs/ascend.md, and (slow) anew."""

import re

import pytest

from ospnext_ms.planning import memory
from tests.support.ascend import NEEDS_DRY_RUN
from tests.support.paths import ROOT
from tools.ascend_dry_run.real import OTHER_PATHS, REAL_PATHS, planned
from tools.ascend_dry_run.run import run_case

pytestmark = pytest.mark.framework
# Too much is a nuisance, too little a run that dies.
MOST = 1.15


def rows():
    """{title: (peak, plan) in MB} of the table; None where it has no number."""
    table = {}
    for line in (ROOT / "docs" / "ascend.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 9 and cells[0] in {*REAL_PATHS, *OTHER_PATHS}:
            table[cells[0]] = tuple(int(re.sub(",", "", cell)) if cell else None for cell in cells[6:8])
    return table


RECORDED = rows()
PLANNED = [title for title in REAL_PATHS if title in RECORDED]


def test_the_table_has_every_path():
    assert RECORDED.keys() == {*REAL_PATHS, *OTHER_PATHS}


@pytest.mark.parametrize("title", PLANNED)
def test_plan_is_near_the_recorded_peak_and_not_below(title):
    peak, plan = RECORDED[title]
    megabytes = planned(REAL_PATHS[title], REAL_PATHS[title].job()[1]) / 2**20
    assert plan == round(megabytes), "the table is not that of this plan"
    assert peak <= megabytes <= MOST * peak


def test_training_the_14b_model_at_720p_fits_64_gb_with_reserve():
    _, work = REAL_PATHS["training step 14B, whole"].job()
    beside = sum(memory.outside(work).values())
    assert memory.estimate(work).total + beside <= 0.9 * 64 * 10**9


@NEEDS_DRY_RUN
@pytest.mark.slow
@pytest.mark.parametrize("title", ["forward 14B, SSP 4x2", "forward 14B, blocks from the host", "VAE, decoding 720P"])
def test_plan_is_near_the_peak(title):
    job, work = REAL_PATHS[title].job()
    report = run_case(job.case, job.options, size=job.size, timeout=1200)
    assert report.error is None
    assert report.peak_mb <= planned(REAL_PATHS[title], work) / 2**20 <= MOST * report.peak_mb
