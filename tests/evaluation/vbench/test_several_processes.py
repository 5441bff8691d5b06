"""`vbench generate` under msrun: the processes share the suite, and together make the files of one."""

import json

import pytest

from ospnext_ms.__main__ import main
from tests.support import generate_runs as runs
from tests.support.configs import changed, write_config
from tests.support.msrun import run_workers

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.framework]

SUITE = [{"prompt_en": "a still lake", "dimension": ["temporal_flickering"]},
         {"prompt_en": "a cat", "dimension": ["scene"]}, {"prompt_en": "A cat", "dimension": ["scene"]}]
SAMPLES = 2


@pytest.fixture
def command(model_files, tmp_path):
    """Function (output folder) -> command."""
    (tmp_path / "suite.json").write_text(json.dumps(SUITE))
    values = changed(runs.settings(model_files), sampling={"steps": 1})
    config = write_config(tmp_path / "run.yaml", values)
    return lambda output: ["vbench", "generate", "--config", str(config), "--suite", str(tmp_path / "suite.json"),
                           "--seed", "666", "--samples", str(SAMPLES), "--output", str(tmp_path / output)]


def files_of(folder):
    """{path in the folder: bytes of a video, what a record says but times}"""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        record = json.loads(path.read_text()) if path.suffix == ".json" else {}
        for key in ("created", "seconds", "configuration"):
            record.pop(key, None)
        files[str(path.relative_to(folder))] = record or path.read_bytes()
    return files


def test_two_processes_share_the_suite(command, tmp_path):
    assert main(command("alone")) == 0
    status, output = run_workers(2, tmp_path, "-m", "ospnext_ms", *command("together"))
    assert status == 0, output[-4000:]
    alone, together = files_of(tmp_path / "alone"), files_of(tmp_path / "together")
    names = {f"{entry['prompt_en']}-{sample}" for entry in SUITE for sample in range(SAMPLES)}
    assert {name for name in alone if name.startswith("videos")} == {f"videos/{name}.mp4" for name in names}
    assert together == alone
    logs = [(tmp_path / "logs" / f"worker_{rank}.log").read_text() for rank in range(2)]
    assert ["3 of 3 videos done" in log for log in logs] == [True, True]
    # What is there is found, and what is missing made by both.
    for name in ("a cat-0", "A cat-1"):
        (tmp_path / "together" / "videos" / f"{name}.mp4").unlink()
    status, output = run_workers(2, tmp_path, "-m", "ospnext_ms", *command("together"))
    assert status == 0, output[-4000:]
    assert "4 of 6 videos are complete" in output
    assert files_of(tmp_path / "together") == alone
