"""Totals of VBench: published rows again, and what they are made of."""

import json

import pytest

from ospnext_ms.evaluation.vbench.dimensions import DIMENSIONS, check_names, share_of_total
from ospnext_ms.evaluation.vbench.results import merge, read_results
from ospnext_ms.evaluation.vbench.total import add_up
from tests.support.paths import FACTS

ROWS = json.loads((FACTS / "vbench_published.json").read_text())
HALVES = dict.fromkeys(DIMENSIONS, 0.5)


@pytest.mark.parametrize("row", ROWS, ids=[row["model"] for row in ROWS])
def test_published_rows(row, tmp_path):
    """Fractions and percentages alike. The rows are rounded to 0.01, what they add up to is off by as much at most."""
    path = tmp_path / "row.json"
    path.write_text(json.dumps(row["scores"]))
    total = add_up(merge(read_results(path)))
    for name in ("quality", "semantic", "total"):
        assert 100 * getattr(total, name) == pytest.approx(row[name], abs=0.0101), name


def test_the_bounds_are_zero_and_one():
    lowest = add_up({name: dimension.low for name, dimension in DIMENSIONS.items()})
    highest = add_up({name: dimension.high for name, dimension in DIMENSIONS.items()})
    assert (lowest.quality, lowest.semantic, lowest.total) == (0, 0, 0)
    assert (highest.quality, highest.semantic, highest.total) == (1, 1, 1)


def test_groups():
    groups = [dimension.group for dimension in DIMENSIONS.values()]
    assert (groups.count("quality"), groups.count("semantic")) == (7, 9)


@pytest.mark.parametrize("name", DIMENSIONS)
def test_how_far_a_dimension_moves_the_total(name):
    moved = add_up(HALVES | {name: 0.51}).total - add_up(HALVES).total
    assert moved == pytest.approx(0.01 * share_of_total(DIMENSIONS[name]))


def test_a_missing_dimension_is_refused_by_name():
    scores = {name: 0.5 for name in DIMENSIONS if name not in ("scene", "color")}
    with pytest.raises(ValueError, match=r"no score for color, scene; the total needs all 16"):
        add_up(scores)


def test_names_are_checked():
    assert check_names(["scene", "color", "scene"]) == ["color", "scene"]
    with pytest.raises(ValueError, match="no dimension 'temporal_flicker'; did you mean temporal_flickering?"):
        check_names(["temporal_flicker"])
