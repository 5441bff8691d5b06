"""The cost of saving, from figures made up for it."""

import pytest

from tools.experiments.save_overhead import saves_of


def record(step, seconds, saving=False, save_seconds=0.0):
    return {"step": step, "loss": 1.0, "step_seconds": seconds, "saving": saving, "save_seconds": save_seconds}


def test_extra_time_is_counted_over_all_steps_that_a_save_overlaps():
    records = [record(1, 60.0), {"step": 1, "eval_loss": 1.0}, record(2, 1.0), record(3, 1.0),
               record(4, 1.2, True, 0.1), record(5, 1.05, True), record(6, 1.0), record(7, 0.9, False, 0.05)]
    saves, median = saves_of(records)
    assert median == 1.0
    assert [save[:3] for save in saves] == [[4, 2, 0.1], [7, 1, 0.05]]
    assert [save[3] for save in saves] == pytest.approx([0.25, -0.1])
