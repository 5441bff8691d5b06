"""Predicted seconds against what one and two H100 took for the 14B: fitted to one size on one, held for the others."""

import pytest

from ospnext_ms.planning.devices import DEVICES
from tests.support.paths import ROOT
from tools.experiments import seconds_on_paper
from tools.experiments.seconds_on_paper import FITTED, MEASURED, fit_shares, predicted


def test_shares_of_an_h100_are_those_fitted_to_one_device_at_720p():
    for name, share in fit_shares(*MEASURED[FITTED]).items():
        assert getattr(DEVICES["H100"], name) == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize(("size", "devices"), MEASURED)
def test_predicted_seconds_are_within_15_percent(size, devices):
    tolerance = 0.01 if (size, devices) == FITTED else 0.15
    assert predicted(size, devices) == pytest.approx(MEASURED[size, devices], rel=tolerance)


def test_the_page_has_what_is_printed(capsys):
    seconds_on_paper.main([])
    table = capsys.readouterr().out.partition("\n")[2]
    assert table.startswith("| H100s ")
    assert table in (ROOT / "docs" / "plan.md").read_text()
