"""Scoring: what is looked for, what is passed over, what is said; with a stand-in for upstream's package."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ospnext_ms.evaluation.vbench.dimensions import DIMENSIONS
from ospnext_ms.evaluation.vbench.needs import NEEDS, missing_needs
from ospnext_ms.evaluation.vbench.results import merge, read_results
from ospnext_ms.evaluation.vbench.score import examine, score
from tests.support.paths import ROOT

SUITE = [{"prompt_en": "a cat", "dimension": ["temporal_flickering"]},
         {"prompt_en": "A cat", "dimension": ["scene", "background_consistency"]}]
# It does what upstream's class does with its arguments, counts its calls, and fails, waits or gives no number as told.
VBENCH = """
import json, os, pathlib, time

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.suite, self.output = device, full_info_dir, pathlib.Path(output_path)

    def evaluate(self, videos_path, name, dimension_list, **options):
        [dimension] = dimension_list
        with open(os.environ["CALLS"], "a") as calls:
            calls.write(f"{dimension} {self.device}\\n")
        print("scoring", flush=True)
        time.sleep(float(os.environ.get("WAIT", 0)))
        if dimension == os.environ.get("BROKEN"):
            raise RuntimeError("no weights for you")
        number = float("nan") if dimension == os.environ.get("EMPTY") else 0.25
        found = [{"video_path": v, "video_results": number} for v in sorted(os.listdir(videos_path))]
        (self.output / f"{name}_full_info.json").write_text("[]")
        (self.output / f"{name}_eval_results.json").write_text(json.dumps({dimension: [number, found]}))
"""
TORCH = """
__version__ = "2.0-stand-in"
class cuda:
    is_available = staticmethod(lambda: False)
device = str
"""


@pytest.fixture
def python(tmp_path, monkeypatch):
    """An interpreter of an environment with the stand-in; HOME is empty, so that no weights are there."""
    return stand_in(tmp_path, monkeypatch, "0.1.5")


def stand_in(folder, monkeypatch, version):
    site = folder / "site"
    (site / "vbench").mkdir(parents=True)
    (site / "vbench" / "__init__.py").write_text(VBENCH)
    (site / "vbench" / "VBench_full_info.json").write_text(json.dumps(SUITE))
    (site / "torch.py").write_text(TORCH)
    (site / f"vbench-{version}.dist-info").mkdir()
    (site / f"vbench-{version}.dist-info" / "METADATA").write_text(f"Name: vbench\nVersion: {version}\n")
    interpreter = folder / "python"
    interpreter.write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec "{sys.executable}" "$@"\n')
    interpreter.chmod(0o755)
    monkeypatch.setenv("CALLS", str(folder / "calls"))
    monkeypatch.setenv("HOME", str(folder))
    return str(interpreter)


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for prompt in ("a cat", "A cat"):
        for i in range(5):
            (folder / f"{prompt}-{i}.mp4").write_bytes(prompt.encode() + bytes([i]))
    return folder


def calls(tmp_path):
    path = tmp_path / "calls"
    return path.read_text().splitlines() if path.exists() else []


def scored(videos, python, **options):
    lines = []
    failed = score(videos, python, videos.parent / "out", say=lines.append, **options)
    return failed, lines


def test_dimension_by_dimension_and_the_rest_the_next_time(videos, python, tmp_path):
    failed, lines = scored(videos, python, dimensions=["temporal_flickering"])
    assert failed == []
    assert lines[0].startswith("vbench 0.1.5 on cpu (torch 2.0-stand-in), 10 videos")
    assert lines[1].startswith("[1/1] temporal_flickering: 0.2500, 5 videos, ")
    failed, lines = scored(videos, python, dimensions=["scene", "temporal_flickering"])
    assert calls(tmp_path) == ["temporal_flickering cpu", "scene cpu"]
    assert lines[1] == "[1/2] temporal_flickering: 0.2500, scored before"
    assert merge(read_results(tmp_path / "out")) == {"temporal_flickering": 0.25, "scene": 0.25}
    assert (tmp_path / "out" / "scene.log").read_text() == "scoring\n"
    assert not list((tmp_path / "out").glob(".*"))


def test_other_videos_are_scored_again(videos, python, tmp_path):
    scored(videos, python, dimensions=["scene"])
    (videos / "a cat-0.mp4").write_bytes(b"of another dimension")
    scored(videos, python, dimensions=["scene"])
    assert len(calls(tmp_path)) == 1
    (videos / "A cat-0.mp4").write_bytes(b"new")
    scored(videos, python, dimensions=["scene"])
    assert len(calls(tmp_path)) == 2
    scored(videos, python, dimensions=["scene"], overwrite=True)
    assert len(calls(tmp_path)) == 3


def test_a_result_that_upstreams_own_command_wrote_is_kept(videos, python, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scene_eval_results.json").write_text('{"scene": [0.75, []]}')
    failed, lines = scored(videos, python, dimensions=["scene"])
    assert (failed, calls(tmp_path)) == ([], [])
    assert "a result without a record is there, kept" in lines[1]


def test_missing_videos(videos, python, tmp_path):
    (videos / "A cat-3.mp4").unlink()
    failed, lines = scored(videos, python, dimensions=["scene", "temporal_flickering"])
    assert failed == ["scene"]
    assert lines[2].startswith("[2/2] scene: not scored, 4 of 5 videos are there (missing: A cat-3.mp4)")
    failed, lines = scored(videos, python, dimensions=["scene"], partial=True)
    assert failed == []
    assert "4 videos of 5, PARTIAL" in lines[1]


def test_one_that_fails_does_not_stop_the_others(videos, python, tmp_path, monkeypatch):
    monkeypatch.setenv("BROKEN", "background_consistency")
    monkeypatch.setenv("EMPTY", "temporal_flickering")
    failed, lines = scored(videos, python, dimensions=["background_consistency", "temporal_flickering", "scene"])
    assert failed == ["background_consistency", "temporal_flickering"]
    assert "background_consistency: failed: RuntimeError: no weights for you (see " in lines[1]
    assert f"it lacks {tmp_path}/.cache/clip/ViT-B-32.pt (would be fetched from https://" in lines[1]
    assert "temporal_flickering: failed: " in lines[2]
    assert "NaN" in lines[2]
    assert merge(read_results(tmp_path / "out")) == {"scene": 0.25}


def test_only_check(videos, python, tmp_path):
    (videos / "A cat-3.mp4").unlink()
    failed, lines = scored(videos, python, only_check=True, dimensions=["temporal_flickering", "scene", "color"])
    assert failed == ["color", "scene"]
    assert lines[1] == "temporal_flickering: 5 of 5 videos; all it needs is there"
    assert lines[2] == "color: 0 of 0 videos; it lacks"
    assert any("the Python package detectron2" in line for line in lines)
    assert any(line.startswith("scene: 4 of 5 videos") for line in lines)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "message"), [
    ("a cat-0.json", "it has a cat-0.json"), ("more", "it has more"), ("a dog-0.gif", "it has both .gif and .mp4")])
def test_a_folder_that_upstream_would_trip_over(name, message, videos, python):
    (videos / name).mkdir() if name == "more" else (videos / name).write_text("x")
    with pytest.raises(ValueError, match=message):
        scored(videos, python)


def test_interpreters(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no interpreter nowhere; `bash scripts/vbench.sh FOLDER` makes"):
        examine("nowhere")
    with pytest.raises(ValueError, match="has vbench 0.1.2"):
        examine(stand_in(tmp_path, monkeypatch, "0.1.2"))


def test_an_interpreter_without_the_package(tmp_path):
    """One without PyTorch, too."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(ValueError, match="cannot run PyTorch"):
        examine(str(bare))


def test_what_each_dimension_needs():
    assert list(NEEDS) == list(DIMENSIONS)
    assert missing_needs("temporal_flickering", {"HOME": "/nowhere"}, False) == []
    moved = missing_needs("overall_consistency", {"HOME": "/nowhere", "VBENCH_CACHE_DIR": "/weights"}, False)
    assert moved[0].startswith("/weights/ViCLIP/ViClip-InternVid-10M-FLT.pth (would be fetched from ")
    assert len(missing_needs("color", {"HOME": "/nowhere"}, True)) == 2


def test_a_signal_ends_it_and_upstreams_process(videos, python, tmp_path):
    """And leaves nothing half-done: the same command scores the dimension."""
    command = [sys.executable, "-m", "ospnext_ms", "vbench", "score", "--videos", str(videos), "--python", python,
               "--output", str(tmp_path / "out"), "--dimensions", "scene"]
    run = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"WAIT": "60"}, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "out" / "scene.log"
    while not (log.exists() and log.read_text()):
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    assert "SIGTERM: ended; the same command goes on" in run.communicate(timeout=30)[1]
    assert run.returncode == 143
    assert [path.name for path in Path(tmp_path / "out").iterdir()] == ["scene.log"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert merge(read_results(tmp_path / "out")) == {"scene": 0.25}
