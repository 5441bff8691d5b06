"""Whole runs of `post-train` on a model of some thousand weights."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from ospnext_ms.__main__ import main
from ospnext_ms.post_training.evaluation import Evaluation
from ospnext_ms.reporting.metrics import read_metrics
from ospnext_ms.storage.peft_format import read_adapter
from tests.support import post_train_runs as runs
from tests.support.configs import write_config
from tests.support.msrun import run_workers
from tests.support.paths import ROOT

pytestmark = pytest.mark.framework


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return runs.write_model(tmp_path_factory.mktemp("model"))


def run(config, *arguments):
    """(exit status, digest at the end or None, output) of a run in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "tests.post_training.run_worker", str(config), *arguments], cwd=ROOT,
                          env=os.environ | {"GLOG_v": "3", "PYTHONPATH": str(ROOT)}, check=False, capture_output=True,
                          text=True)
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("digest")]
    return done.returncode, found[0] if found else None, done.stdout + done.stderr


def figures(folder):
    """Figures of the iterations and of the evaluations, without times."""
    found = [{name: value for name, value in record.items() if "seconds" not in name}
             for record in read_metrics(folder)]
    return [record for record in found if len(record) > 1]


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    """(output folder, digest) of three iterations in one go."""
    folder = tmp_path_factory.mktemp("undisturbed")
    values = runs.settings(model, folder / "out", runner_config={"iterations": 3})
    status, digest, output = run(write_config(folder / "run.yaml", values))
    assert status == 0, output
    return folder / "out", digest


@pytest.mark.slow
def test_what_a_run_leaves(undisturbed):
    folder, _ = undisturbed
    records = figures(folder)
    iterations = [record for record in records if "policy_loss" in record]
    assert [record["window_start"] for record in iterations] == [0, 1, 0]
    for record in iterations:
        assert record["log_prob_disagreement"] < 1e-4
        assert record["ratio_deviation_before"] == 0
        assert record["ratio_deviation_after"] > 0
        assert record["rescoring_difference"] < 1e-5
        assert record["updates"] == 2
    assert iterations[0]["kl"] < iterations[2]["kl"]
    assert [record["step"] for record in records if "eval/reward" in record] == [0, 3]
    assert "eval/rise_error" in records[-1]
    for name in ("reward_curve.png", "evaluation/000003/scores.json", "evaluation/000003/video_0000.mp4",
                 "evaluation/000000/contact_sheet.png"):
        assert (folder / name).stat().st_size > 0
    config, arrays = read_adapter(folder / "adapter_ema")
    assert (config.rank, config.alpha) == (2, 4.0)
    assert any(b.any() for _, b in arrays.values())
    for name in ("adapter", "adapter_ema"):
        in_checkpoint = read_adapter(folder / "checkpoints" / "step_00000003" / name)[1]
        for layer, pair in read_adapter(folder / name)[1].items():
            for array, other in zip(pair, in_checkpoint[layer], strict=True):
                np.testing.assert_array_equal(other, array, err_msg=layer)


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed_bit_by_bit(undisturbed, model, tmp_path):
    """Also with validation, of which the undisturbed run has none."""
    folder, digest = undisturbed
    values = runs.settings(model, tmp_path / "out", runner_config={"iterations": 3},
                           validation={"prompts": ["a 3", "a 5", "a 0"], "every": 1, "seed": 2})
    config = write_config(tmp_path / "run.yaml", values)
    assert run(config, "2")[0] == -9
    status, resumed, output = run(config)
    assert status == 0, output
    assert "resuming after iteration 2" in output
    assert resumed == digest
    assert figures(tmp_path / "out") == figures(folder)
    made = sorted(path.parent.name for path in (tmp_path / "out" / "validation").glob("*/validation.json"))
    assert made == [f"step_{i:08d}" for i in range(4)]


@pytest.mark.slow
def test_two_processes_agree_with_one(undisturbed, model, tmp_path):
    """Same rewards, advantages and adapters for the same seed; every first ratio is exactly 1 with 2 processes too."""
    values = runs.settings(model, tmp_path / "out", runner_config={"iterations": 3})
    config = write_config(tmp_path / "run.yaml", values)
    status, output = run_workers(2, tmp_path, "-m", "tests.post_training.run_worker", str(config))
    assert status == 0, output
    alone, together = (figures(folder) for folder in (undisturbed[0], tmp_path / "out"))
    assert len(alone) == len(together)
    for one, two in zip(alone, together, strict=True):
        assert one.keys() == two.keys()
        if "policy_loss" in two:
            assert two["ratio_deviation_before"] == 0
            assert two["ratio_deviation_after"] > 0
            assert two["log_prob_disagreement"] < 1e-4
            assert two["reward_mean"] == pytest.approx(one["reward_mean"], abs=1e-4)
    arrays = [read_adapter(folder / "adapter")[1] for folder in (undisturbed[0], tmp_path / "out")]
    for name, pair in arrays[0].items():
        for a, b in zip(pair, arrays[1][name], strict=True):
            assert abs(a - b).max() < 2e-3, name


@pytest.mark.slow
def test_a_batch_that_a_reward_drops_costs_no_adapter(model, tmp_path):
    """The first evaluation lacks the parts of one video; the last one is compared with it."""
    rewards = [{"name": "bad", "callable": "tests.post_training.scorers:Faulty", "weight": 1.0, "on_failure": "drop",
                "retries": 0, "arguments": {"how": "raise", "counter": str(tmp_path / "count"), "times": 1}}]
    values = runs.settings(model, tmp_path / "out", rewards=rewards, runner_config={"iterations": 1},
                           rollout={"batch_size": 1})
    status, _, output = run(write_config(tmp_path / "run.yaml", values))
    assert status == 0, output
    assert (tmp_path / "out" / "adapter_ema" / "adapter_config.json").is_file()
    evaluations = [record for record in figures(tmp_path / "out") if "eval/reward" in record]
    assert [record["eval/without_a_reward"] for record in evaluations] == [1, 0]


@pytest.mark.slow
def test_adapters_and_the_evaluation_that_a_stop_left_out_are_made(model, tmp_path, monkeypatch, capsys):
    values = runs.settings(model, tmp_path / "out", runner_config={"iterations": 1})
    values["context"]["mode"] = "pynative"
    command = ["post-train", "--config", str(write_config(tmp_path / "run.yaml", values))]
    plain = Evaluation.__call__

    def stopped(self, iteration, *arguments):
        if iteration == 1:
            raise KeyboardInterrupt
        return plain(self, iteration, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "__call__", stopped)
        assert main(command) == 130
    adapter = tmp_path / "out" / "adapter_ema" / "adapter_model.safetensors"
    written = adapter.read_bytes()
    shutil.rmtree(adapter.parent)
    assert main(command) == 0
    assert "nothing to do" not in capsys.readouterr().out
    assert adapter.read_bytes() == written
    assert [record["step"] for record in figures(tmp_path / "out") if "eval/reward" in record] == [0, 1]
    assert main(command) == 0
    assert "nothing to do: all 1 iterations are done" in capsys.readouterr().out


def test_a_failing_reward_ends_the_run_with_its_name(model, tmp_path):
    rewards = [{"name": "bad", "callable": "tests.post_training.scorers:Unmakeable", "weight": 1.0, "arguments": {}}]
    values = runs.settings(model, tmp_path / "out", rewards=rewards)
    config = write_config(tmp_path / "run.yaml", values)
    done = subprocess.run([sys.executable, "-m", "ospnext_ms", "post-train", "--config", str(config)], cwd=ROOT,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "reward bad (tests.post_training.scorers:Unmakeable)" in done.stderr
    assert "no weights in checkpoints/reward" in done.stderr
