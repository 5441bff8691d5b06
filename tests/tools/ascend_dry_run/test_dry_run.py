"""Every graph that the product runs on Ascend compiles for it, with fast operators and within its memory."""

import re

import pytest

from tests.support.ascend import NEEDS_DRY_RUN
from tests.support.paths import CONFIGS
from tests.tools.ascend_dry_run.checks import (
    GRADIENT,
    NATIVE_BLOCK,
    check_compiled,
    check_forward,
    check_native_gradient,
    check_recomputed_gradient,
)
from tools.ascend_dry_run.__main__ import main
from tools.ascend_dry_run.collectives import first_difference
from tools.ascend_dry_run.paths import PATHS
from tools.ascend_dry_run.run import run_case

pytestmark = [pytest.mark.framework, NEEDS_DRY_RUN]


def test_forward():
    report = run_case("forward")
    check_forward(report)
    assert 500 < report.nodes("aclnn") < 700


def test_gradient_with_recompute():
    check_recomputed_gradient(run_case("gradient", GRADIENT))


def test_gradient_of_a_native_hif8_block():
    check_native_gradient(run_case("gradient", NATIVE_BLOCK))


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_every_path_compiles(path):
    job = PATHS[path]
    report = run_case(job.case, job.options, path, size=job.size, timeout=1200)
    check_compiled(report)
    if path in ("umt5", "vae"):
        assert report.nodes("aclop") == 0, report.operators["aclop"]


@pytest.mark.slow
def test_a_yaml_file(capsys):
    """The first of the commands in docs/ascend.md, of fewer blocks."""
    options = ["--config", str(CONFIGS / "train" / "14b.yaml"), "--layers", "8", "--full", "4", "--world", "8"]
    assert main(options) == 0
    shown = capsys.readouterr()
    assert "compiled" in shown.out
    assert re.search(r"^plan: \d+ MB$", shown.err, re.MULTILINE)


@pytest.mark.slow
def test_the_table(capsys):
    """Of one path; all of them take an hour and a half."""
    assert main(["--table", "forward 1.3B, 480P"]) == 0
    *_, row, _, rest = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:3] == ["forward 1.3B, 480P", "8, 4 full", "yes"]
    assert rest == "aclop: none; nodes in fp64: 0"


@pytest.mark.slow
def test_recompute_frees_most_of_the_memory():
    """The 14B's blocks at 720P on 4 x 2 ranks, weights over 8."""
    shape = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "text_dim": 4096, "num_layers": 8, "num_full_blocks": 4}
    used = {}
    for recompute in (True, False):
        report = run_case("gradient", {"grid": [21, 45, 80], "degrees": [4, 2, 8], "recompute": recompute, **shape},
                          size=8, timeout=1200)
        assert report.error is None
        used[recompute] = report.peak_mb
    assert used[True] <= 0.45 * used[False]


@pytest.mark.slow
def test_all_ranks_exchange_in_the_same_order():
    job = PATHS["step-4x2-sharded"]
    orders = {rank: run_case(job.case, job.options, rank=rank, size=job.size).collectives for rank in range(job.size)}
    assert len(orders[0]) > 100
    assert first_difference(orders) is None
