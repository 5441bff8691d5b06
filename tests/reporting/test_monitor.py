"""Figures of a run: what is kept, what is printed, what is drawn."""

import numpy as np
import pytest

from ospnext_ms.reporting.loss_curve import plot_loss, running_mean
from ospnext_ms.reporting.metrics import METRICS, read_metrics
from ospnext_ms.reporting.monitor import Monitor
from ospnext_ms.reporting.progress import format_seconds, model_flops_utilisation, progress_line

FIGURES = {"loss": 0.1 + 0.2, "gradient_norm": 1.5, "learning_rate": 1e-4, "step_seconds": 2.0,
           "samples_per_second": 4.0}


def test_figures_keep_all_digits_and_those_after_the_resumed_step_are_dropped(tmp_path):
    monitor = Monitor(tmp_path, 10, print_every=100)
    for step in range(1, 6):
        monitor.step(step, FIGURES)
    monitor.close()
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 6, "lo')
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    monitor = Monitor(tmp_path, 10, first_step=3, print_every=100)
    monitor.step(4, FIGURES | {"loss": 7.0})
    monitor.close()
    records = read_metrics(tmp_path)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert (records[0]["loss"], records[3]["loss"]) == (0.1 + 0.2, 7.0)


def test_the_progress_line_has_what_a_reader_wants():
    line = progress_line(3, 10, FIGURES | {"mfu": 0.4231}, 3725.2, "NOTE")
    assert line == ("step 3/10  loss 0.30000  norm 1.5000  lr 0.0001  2.000 s/step  4 samples/s  MFU 42.3%  "
                    "left 1:02:06  NOTE")
    assert "MFU" not in progress_line(3, 10, FIGURES, None, "")
    assert format_seconds(59.1) == "0:01:00"


def test_utilisation_counts_forward_and_backward_over_all_devices():
    assert model_flops_utilisation(1e12, samples=4, seconds=2.0, peak_tflops=10.0, devices=3) == pytest.approx(0.2)


def test_the_running_mean_is_cut_at_the_ends():
    np.testing.assert_allclose(running_mean([1, 2, 3, 10], 3), [1.5, 2, 5, 6.5])


def test_the_loss_is_drawn(tmp_path):
    records = [{"step": i, "loss": 2.0 / (i + 1)} for i in range(1, 30)] + [{"step": 0, "eval_loss": 2.0},
                                                                            {"step": 29, "eval_loss": 0.1}]
    path = plot_loss(records, tmp_path / "curve.png", "RANDOM DATA")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert path.stat().st_size > 5000
