"""`doctor` under msrun measures every collective's contract."""

import pytest

from ospnext_ms.kernels.collective_contracts import COLLECTIVE_CONTRACTS, idle_counts, uneven_counts
from tests.support.msrun import run_workers


def test_counts_cover_what_goes_wrong():
    counts = uneven_counts(3)
    assert counts[0][1] == counts[1][0] == 0
    assert all(map(sum, counts))
    assert len({n for row in counts for n in row}) > 2
    assert sum(idle_counts(3)[2]) == sum(row[2] for row in idle_counts(3)) == 0


@pytest.mark.slow
def test_three_processes(tmp_path):
    status, said = run_workers(3, tmp_path, "-m", "ospnext_ms", "doctor")
    assert status == 0, said
    for name, _ in COLLECTIVE_CONTRACTS:
        # msrun itself shows what process 0 prints.
        assert said.count(f"  ok      collective {name}: equal on 3 ranks") >= 3, said
    assert "FAILED" not in said
