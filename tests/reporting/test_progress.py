"""Progress lines and clocks."""

import itertools

import pytest

from ospnext_ms.reporting import clock as clocks
from ospnext_ms.reporting.clock import StageClock, StepClock
from ospnext_ms.reporting.progress import format_seconds, iteration_line, training_line

FIGURES = {"loss": 0.1 + 0.2, "gradient_norm": 1.5, "learning_rate": 1e-4, "step_seconds": 2.0,
           "samples_per_second": 4.0}


def test_the_line_of_a_step_has_what_a_reader_wants():
    line = training_line(3, 10, FIGURES | {"mfu": 0.4231}, 3725.2)
    assert line == ("step 3/10  loss 0.30000  norm 1.5000  lr 0.0001  2.000 s/step  4 samples/s  MFU 42.3%  "
                    "left 1:02:06")
    assert "MFU" not in training_line(3, 10, FIGURES, None)
    assert format_seconds(59.1) == "0:01:00"


def test_the_line_of_an_iteration_leaves_out_what_was_not_measured_and_counts_missing_scores():
    figures = {"window_start": 4, "reward_mean": 0.75, "reward_std": 0.125, "kl": None, "iteration_seconds": 12.34,
               "failed/a": 2, "failed/b": 1}
    assert iteration_line(2, 5, figures, 59.1) == ("iteration 2/5  window 4  reward 0.75  spread 0.125  12.3 s  "
                                                   "left 0:01:00  WITHOUT A SCORE 3")
    assert iteration_line(2, 5, figures | {"failed/a": 0, "failed/b": 0}, None).endswith("12.3 s")


@pytest.fixture
def at(monkeypatch):
    """Sets the times that clocks will read."""
    def set_times(*times):
        readings = itertools.chain(times)
        monkeypatch.setattr(clocks.time, "perf_counter", lambda: next(readings))

    return set_times


def test_the_first_step_and_what_is_skipped_stay_out_of_the_estimate(at):
    at(0.0, 50.0, 52.0, 90.0, 92.0)
    clock = StepClock(4)
    assert clock.tick() == 50
    assert clock.seconds_left is None
    assert clock.tick() == 2
    clock.skip()
    assert clock.tick() == 2
    assert clock.seconds_left == pytest.approx(2)


def test_stages_of_a_step(at):
    at(1.0, 1.5, 3.75)
    clock = StageClock()
    clock.end("rollout")
    clock.end("update")
    assert clock.figures == {"seconds/rollout": 0.5, "seconds/update": 2.25}
