"""Traces of MindSpore's profiler and tables of what steps spend their time on."""

import json
import re

import pytest

from ospnext_ms.__main__ import main
from ospnext_ms.config.checks import ConfigError
from ospnext_ms.reporting import profile
from ospnext_ms.reporting.profile import SamplingTrace, StepProfile, table
from tests.support import generate_runs
from tests.support import train_runs as runs
from tests.support.configs import write_config

pytestmark = pytest.mark.framework


class Section:
    start, steps = 3, 2


class Traced(list):
    """Stands in for kernels.profiler.Trace."""

    def __init__(self, folder, name, steps):
        super().__init__([f"{name} {steps}"])
        Traced.last = self

    def step(self):
        self.append("step")

    def stop(self):
        self.append("stop")
        return "trace.json"


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by a second whenever it is looked at; traces are only noted."""
    seconds = iter(range(10**6))
    monkeypatch.setattr(profile.time, "perf_counter", lambda: float(next(seconds)))
    monkeypatch.setattr(profile, "_trace", Traced)
    Traced.last = None


def test_the_parts_of_the_steps_in_question_are_added_up_and_told(clock, tmp_path):
    said, seen = [], []
    steps = StepProfile(Section, tmp_path, 1, said.append)
    for item in steps.steps(1, "abcdef"):
        seen.append(item)
        steps.end("gradients")
        steps.end("update")
    assert seen == list("abcdef")
    assert Traced.last == ["rank_1 2", "step", "step", "stop"]
    assert said[0].splitlines() == [
        "profile of steps 3 to 4, seconds of one on this process:", "  data          1.0000   25.0%",
        "  gradients     1.0000   25.0%", "  update        1.0000   25.0%", "  rest          1.0000   25.0%",
        "  together      4.0000  100.0%"]
    assert said[1:] == ["trace: trace.json"]


def test_a_run_that_ends_early_still_has_its_trace(clock, tmp_path):
    said = []
    running = StepProfile(Section, tmp_path, 0, said.append).steps(1, "abcdef")
    assert [next(running) for _ in range(4)] == list("abcd")
    running.close()
    assert Traced.last == ["rank_0 2", "step", "stop"]
    assert said[0].startswith("profile of steps 3 to 3")


def test_steps_that_are_done_already_are_said_and_without_a_section_nothing_is(clock, tmp_path):
    said = []
    assert list(StepProfile(Section, tmp_path, 0, said.append).steps(5, "ef")) == ["e", "f"]
    assert said == ["callbacks.profile begins with step 3, which is done already: no profile"]
    assert list(StepProfile(None, tmp_path, 0, said.append).steps(1, "ab")) == ["a", "b"]
    assert (Traced.last, len(said)) == (None, 1)


@pytest.mark.parametrize(("steps", "expected"), [
    (5, ["rank_0 2", "step", "step", "stop"]), (2, ["rank_0 1", "step", "stop"]), (1, ["rank_0 1", "step", "stop"]),
])
def test_two_sampling_steps_after_the_first_are_traced(clock, tmp_path, steps, expected):
    trace = SamplingTrace(tmp_path, 0, steps)
    for _ in range(steps):
        trace()
    assert trace.stop() == "trace.json"
    assert Traced.last == expected


def test_steps_that_a_run_does_not_have_are_refused(tmp_path):
    values = runs.settings("out", "data", steps=6)
    values["callbacks"]["profile"] = {"start": 5, "steps": 3}
    with pytest.raises(ConfigError, match="callbacks.profile is of steps 5 to 7, but there are 6"):
        runs.read_config(tmp_path / "c.yaml", values)


def events_of(folder):
    """Names of the operators in the trace of the one process that wrote one."""
    file, = (folder / "profile").glob("rank_0_*/ASCEND_PROFILER_OUTPUT/trace_view.json")
    return [event for event in json.loads(file.read_text()) if event["ph"] == "X"]


@pytest.mark.parametrize("mode", ["pynative", pytest.param("graph", marks=pytest.mark.slow)])
def test_a_training_run_leaves_a_trace_and_a_table(tmp_path, capsys, mode):
    values = runs.settings(tmp_path / "run", runs.write_cache(tmp_path / "data"), steps=4)
    values["context"]["mode"] = mode
    values["model"]["dit"]["num_layers"] = 1
    values["callbacks"]["profile"] = {"start": 2, "steps": 2}
    assert main(["train", "--config", str(write_config(tmp_path / "run.yaml", values))]) == 0
    events = events_of(tmp_path / "run")
    assert len(events) > 100
    assert all(event["dur"] >= 0 and event["ts"] > 0 for event in map(as_numbers, events))
    assert any("MatMul" in event["name"] for event in events)
    told = capsys.readouterr().out
    assert "profile of steps 2 to 3, seconds of one on this process:" in told
    rows = re.findall(r"^  (\w+) +(\d+\.\d+) +\d+\.\d%", told, re.MULTILINE)
    parts = {name: float(seconds) for name, seconds in rows}
    assert list(parts) == ["data", "gradients", "waiting", "update", "rest", "together"]
    assert parts["together"] == pytest.approx(sum(parts.values()) / 2, abs=1e-3)
    assert parts["gradients"] > parts["data"]


def as_numbers(event):
    return {"dur": float(event["dur"]), "ts": float(event["ts"])}


@pytest.mark.slow
def test_generate_leaves_one_too(tmp_path, model_files, capsys):
    config = write_config(tmp_path / "run.yaml", generate_runs.settings(model_files, tmp_path / "out"))
    assert main(["generate", "--config", str(config), "--profile"]) == 0
    assert any("MatMul" in event["name"] for event in events_of(tmp_path / "out"))
    told = capsys.readouterr().out
    assert "seconds of the first video:" in told
    for stage in ("text_encoding", "denoising", "decoding"):
        assert stage in told


def test_the_table_of_nothing_has_no_share():
    assert table({"data": 0.0})[0].endswith("0.0%")
