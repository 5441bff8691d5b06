"""A run's figures: kept, printed, drawn, with the configuration beside them."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from ospnext_ms.reporting.curves import LOSS_CURVE, REWARD_CURVE, draw_loss, draw_rewards
from ospnext_ms.reporting.metrics import METRICS, read_metrics
from ospnext_ms.reporting.monitor import CONFIGURATION, Monitor
from ospnext_ms.reporting.progress import iteration_line, training_line
from ospnext_ms.reporting.report import REPORT

FIGURES = {"loss": 0.1 + 0.2, "gradient_norm": 1.5, "learning_rate": 1e-4, "step_seconds": 2.0,
           "samples_per_second": 4.0}
ITERATION = {"window_start": 3, "iteration_seconds": 2.5, "reward_mean": 0.5, "kl": None, "failed/a": 1}


@dataclass
class Callbacks:
    per_print_times: int = 100
    trackers: tuple = ()


@dataclass
class Config:
    output_dir: str
    callbacks: Callbacks


@pytest.fixture
def make(tmp_path):
    def make(line=training_line, draw=draw_loss, steps_done=0, note="", **callbacks):
        return Monitor(Config(str(tmp_path), Callbacks(**callbacks)), 10, steps_done, line, draw, note)

    return make


def test_figures_keep_all_digits_and_those_after_the_resumed_step_are_dropped(make, tmp_path):
    monitor = make()
    for step in range(1, 6):
        monitor.step(step, FIGURES)
    monitor.close()
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 6, "lo')
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    monitor = make(steps_done=3)
    monitor.step(4, FIGURES | {"loss": 7.0})
    monitor.close()
    records = read_metrics(tmp_path)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert (records[0]["loss"], records[3]["loss"]) == (0.1 + 0.2, 7.0)


def test_a_line_every_so_many_steps_and_at_the_end_with_the_note_on_each(make, capsys):
    monitor = make(per_print_times=4, note="RANDOM DATA")
    for step in range(1, 11):
        monitor.step(step, FIGURES)
    monitor.say("something else")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["4/10", "8/10", "10/10"]
    assert all(line.endswith("  RANDOM DATA") for line in lines)


def test_numbers_go_to_tensorboard_and_the_configuration_to_a_file(make, tmp_path, monkeypatch):
    added = []
    writer = SimpleNamespace(add_scalar=lambda *scalar: added.append(scalar), close=lambda: None,
                             add_text=lambda name, text, step: added.append((name, '"per_print_times": 100' in text)))
    monkeypatch.setattr("tensorboardX.SummaryWriter", lambda folder, purge_step: added.append(purge_step) or writer)
    monitor = make(iteration_line, draw_rewards, steps_done=6, trackers=("tensorboard",))
    monitor.step(7, ITERATION)
    assert added == [7, ("configuration", True), ("window_start", 3, 7), ("iteration_seconds", 2.5, 7),
                     ("reward_mean", 0.5, 7), ("failed/a", 1, 7)]
    assert json.loads((tmp_path / CONFIGURATION).read_text())["callbacks"]["per_print_times"] == 100
    assert monitor.close() == [tmp_path / REWARD_CURVE, tmp_path / REPORT]


def test_a_run_without_a_step_has_no_curve(make, tmp_path):
    monitor = make()
    monitor.record(0, {"eval_loss": 1.0})
    assert monitor.close() == [tmp_path / REPORT]
    assert not (tmp_path / LOSS_CURVE).exists()


def test_a_damaged_line_costs_itself_only_and_is_named(make, tmp_path, capsys):
    lines = [b'{"step": 1, "loss": 1.0}', b'{"step": 2, "lo', b"\xff\xfe\x00", b"[" * 100_000, b'{"loss": 2.0}',
             b'{"step": 3, "loss": 3.0}', b'{"step": 9, "loss": 3.0}', b""]
    (tmp_path / METRICS).write_bytes(b"\n".join(lines))
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 3, 9]
    make(steps_done=5).close()
    assert f"{tmp_path / METRICS}: line 2, 3, 4, 5 cannot be read and is left out" in capsys.readouterr().out
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 3]
