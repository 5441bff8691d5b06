"""The total as table, JSON and figure."""

import json

import cv2

from ospnext_ms.evaluation.vbench.dimensions import DIMENSIONS
from ospnext_ms.evaluation.vbench.report import table, write_report
from ospnext_ms.evaluation.vbench.total import add_up

SCORES = {name: (dimension.low + dimension.high) / 2 for name, dimension in DIMENSIONS.items()}


def test_table():
    lines = table(add_up(SCORES | {"scene": 0.8222})).splitlines()
    rows = {line[:24].strip(): line[24:].split() for line in lines if line}
    assert len(rows) == 1 + 16 + 3 + 3
    assert rows["scene"] == ["82.22", "100.00", "0.027"]
    assert rows["quality"] == ["50.00"]
    assert rows["total"] == ["51.11"]
    assert rows["Wan2.1 14B (paper)"] == ["83.69", "-32.58"]
    assert rows["OSP-Next (paper)"][0] == "83.73"
    assert rows["OSP-Next HiF8 (paper)"][0] == "83.29"


def test_json_and_figure(tmp_path):
    """A score below its bound has a bar to the left and is in the picture."""
    total = add_up(SCORES | {"temporal_flickering": 0.5})
    record, figure = write_report(total, tmp_path / "new")
    content = json.loads(record.read_text())
    assert content["dimensions"]["temporal_flickering"]["normalised"] < 0
    assert content["total"] == total.total
    assert content["published_percent"]["OSP-Next"] == 83.73
    assert cv2.imread(str(figure)).std() > 10
