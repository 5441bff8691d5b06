"""The total as table, JSON and figure, and the command that shows it."""

import json

import cv2

from ospnext_ms.__main__ import main
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


def test_the_command_prints_and_writes(tmp_path, capsys):
    results = tmp_path / "results"
    results.mkdir()
    for name, score in SCORES.items():
        (results / f"{name}_eval_results.json").write_text(json.dumps({name: [score, [{}] * 500]}))
    command = ["vbench", "total", "--results", str(results), "--output", str(tmp_path / "out")]
    assert main([*command, "--zip", str(tmp_path / "results.zip")]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-3:] == [
        str(tmp_path / "out" / "vbench_total.json"), str(tmp_path / "out" / "vbench_total.png"),
        str(tmp_path / "results.zip")]
    assert "total                      50.00" in shown.out
    assert shown.err == ""
    assert main(["vbench", "total", "--results", str(tmp_path / "results.zip"), "--output", str(tmp_path / "out"),
                 "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"] == 0.5
    (results / "scene_eval_results.json").write_text(json.dumps({"scene": [0.4, [{}] * 5]}))
    assert main(command) == 0
    assert capsys.readouterr().err == "not comparable: scene: 5 of 430 videos\n"
    (results / "scene_eval_results.json").unlink()
    assert main(command) == 2
    assert "error: no score for scene; the total needs all 16 dimensions" in capsys.readouterr().err
