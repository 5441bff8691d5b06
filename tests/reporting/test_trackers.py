"""Trackers: off line, told of figures, pictures and the configuration, and none of them stops a run."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from ospnext_ms.config.checks import ConfigError
from ospnext_ms.data.pictures import read_png, write_png
from ospnext_ms.data.video import write_mp4
from ospnext_ms.reporting import trackers
from ospnext_ms.reporting.trackers import Guarded, check_installed, open_trackers
from tests.support import train_runs as runs
from tests.support.paths import ROOT


class Faulty:
    """Works once."""

    def __init__(self):
        self.told = []

    def add(self, step, figures):
        if self.told:
            raise OSError(28, "No space\nleft on device")
        self.told.append((step, figures))

    picture = video = add

    def close(self):
        raise AssertionError("it was to be left alone")


def test_one_that_fails_is_told_of_once_and_stops_nothing():
    said, faulty = [], Faulty()
    tracker = Guarded("wandb", faulty, said.append)
    tracker.add(1, {"loss": 0.5, "kl": None, "words": "a", "is_good": True, "count": 3})
    assert faulty.told == [(1, {"loss": 0.5, "count": 3})]
    tracker.add(2, {"loss": 0.25})
    assert len(said) == 1
    assert said[0].startswith("the tracker wandb failed and is told nothing more: OSError(28")
    assert "\n" not in said[0]
    tracker.picture(2, "a", "b")
    tracker.video(2, "a", "b")
    tracker.close()
    assert said[1:] == ["the tracker wandb was not told 2 things after it had failed"]


def test_a_missing_package_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", ("x", "X", "no_such_package_at_all"))
    with pytest.raises(ValueError, match="callbacks.trackers names wandb, but the package no_such_package_at_all is "
                       r"not installed; pip install -e '.\[trackers\]', or leave wandb out"):
        check_installed(["tensorboard", "wandb"])


def test_one_that_cannot_start_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", ("tests.reporting.test_trackers", "No_such_class", "json"))
    with pytest.raises(ValueError, match="the tracker wandb cannot start: "):
        open_trackers(["wandb"], tmp_path, {}, 0, print)


@pytest.mark.parametrize(("callbacks", "message"), [
    ({"trackers": ["mlflow"]}, r"callbacks.trackers\[0\]: .*mlflow.* is not one of tensorboard, wandb, swanlab"),
    ({"trackers": ["wandb", "wandb"]}, "callbacks: trackers names one twice"),
    ({"tensorboard": True}, r"callbacks.tensorboard: this key is no longer read; write trackers: \[tensorboard\] for "
                            r"true, trackers: \[\] for false"),
])
def test_what_cannot_be_tracked_is_refused(tmp_path, callbacks, message):
    values = runs.settings("out", "data")
    values["callbacks"] |= callbacks
    with pytest.raises(ConfigError, match=message):
        runs.read_config(tmp_path / "c.yaml", values)


TRACKED = """
import sys
reached = []
sys.addaudithook(lambda event, arguments: event == "socket.connect" and reached.append(arguments[1]))
from ospnext_ms.reporting.trackers import open_trackers
name, folder = sys.argv[1:]
tracker, = open_trackers([name], folder, {"seed": 3, "model": {"dit": {"dim": 16}}}, 0, print)
tracker.add(1, {"loss": 0.5, "eval/reward": 2})
tracker.add(1, {"seconds/validation": 1.5})
tracker.picture(1, "validation/contact_sheet", f"{folder}/sheet.png")
tracker.video(1, "validation/videos", f"{folder}/grid.mp4")
tracker.add(2, {"loss": 0.25})
tracker.close()
print("reached", [a for a in reached if isinstance(a, tuple) and a[0] not in ("127.0.0.1", "::1")])
"""


def tracked(tmp_path, name):
    """Folder of a run that was told to a tracker in a process of its own, off line, which reached no other host."""
    folder = tmp_path / "run"
    write_png(folder / "sheet.png", np.full((24, 32, 3), 200, np.uint8))
    write_mp4(folder / "grid.mp4", np.full((5, 32, 32, 3), 90, np.uint8), 8, 18)
    free = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "SWANLAB"))}
    done = subprocess.run([sys.executable, "-c", TRACKED, name, str(folder)], check=False, capture_output=True,
                          text=True, env=free | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
                                                 "HOME": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reached []" in done.stdout
    assert "failed" not in done.stdout
    return folder


@pytest.mark.skipif(find_spec("wandb") is None, reason="needs the package wandb")
def test_an_offline_run_is_read_back_by_wandbs_own_package(tmp_path):
    folder = tracked(tmp_path, "wandb")
    file, = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    read = subprocess.run([sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)], check=True,
                          capture_output=True, text=True, env=os.environ | {"WANDB_ERROR_REPORTING": "false"})
    records = [json.loads(line) for line in read.stdout.splitlines() if line.startswith("{")]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    first, second = history
    assert (first["loss"], first["eval/reward"], first["seconds/validation"], second["loss"]) == (0.5, 2, 1.5, 0.25)
    assert (first["_step"], second["_step"]) == (1, 2)
    media = {name: (file.parent / "files" / first[f"{name}.path"]).read_bytes()
             for name in ("validation/contact_sheet", "validation/videos")}
    assert media["validation/contact_sheet"] == (folder / "sheet.png").read_bytes()
    assert media["validation/videos"] == (folder / "grid.mp4").read_bytes()
    run = next(record["run"] for record in records if record["type"] == "run")
    assert run["config"]["update"]["model"] == {"dit": {"dim": 16}}


@pytest.mark.skipif(find_spec("swanlab") is None, reason="needs the package swanlab")
def test_an_offline_run_of_swanlab_holds_figures_picture_and_configuration(tmp_path):
    folder = tracked(tmp_path, "swanlab")
    run, = (folder / "swanlab").glob("run-*")
    content = next(run.glob("run-*.swanlab")).read_bytes()
    for word in (b"loss", b"eval/reward", b"seconds/validation", b"validation/contact_sheet"):
        assert word in content, word
    np.testing.assert_array_equal(read_png(next((run / "media").rglob("*.png"))), read_png(folder / "sheet.png"))
    assert "dim" in (run / "files" / "config.yaml").read_text()
