"""Whole runs of a network of some thousand weights: same results again, after a kill, from every kind of checkpoint."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from mindspore.graph.api import ms_compile_cache

from ospnext_ms.parallel.mesh import Mesh
from ospnext_ms.reporting.metrics import read_metrics
from ospnext_ms.runtime import start
from ospnext_ms.storage.checkpoint_store import CheckpointStore
from ospnext_ms.storage.training_checkpoint import open_checkpoint
from ospnext_ms.training.loop import Trainer
from tests.support import train_runs as runs
from tests.support.configs import write_config
from tests.support.paths import ROOT

pytestmark = pytest.mark.long

EXACT = ("loss", "gradient_norm", "clip_factor", "clip_threshold", "learning_rate", "epoch")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.write_cache(tmp_path_factory.mktemp("cache") / "data")


def trainer(tmp_path, values, *overrides):
    config = runs.read_config(tmp_path / "config.yaml", values, *overrides)
    return Trainer(config, start(config.context), Mesh.single())


def pynative(folder, data, **options):
    """Settings of a run of one block without compilation, which is quicker for a few steps."""
    values = runs.settings(folder, data, **options)
    values["context"]["mode"] = "pynative"
    values["model"]["dit"]["num_layers"] = 1
    return values


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """Folder of a run of three steps; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("finished")
    trainer(folder, pynative(folder / "run", data, steps=3)).run()
    return folder / "run"


def exact_figures(folder):
    return [{name: record[name] for name in EXACT} for record in read_metrics(folder) if "loss" in record]


def tensors_of(path):
    return {(group, name): tensor.numpy() for group, tensors in open_checkpoint(path).groups.items()
            for name, tensor in tensors.items()}


def count_graphs(run):
    """A list that gets the number of compiled graphs after each step of a Trainer."""
    counts, plain = [], run.train_step

    def train(inputs):
        figures = plain(inputs)
        counts.append(len(ms_compile_cache))
        return figures

    run.train_step = train
    return counts


KILLED = """
import os, signal, sys, time
from pathlib import Path
from ospnext_ms.__main__ import main
from ospnext_ms.reporting.monitor import Monitor

plain = Monitor.step

def step(self, number, *arguments):
    plain(self, number, *arguments)
    if number == int(sys.argv[2]):
        while not (self.folder / "checkpoints" / sys.argv[3]).is_dir():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

Monitor.step = step
sys.exit(main(["train", "--config", sys.argv[1]]))
"""


def test_killed_and_resumed_equals_undisturbed_bit_by_bit_over_fifty_steps(tmp_path, data, capsys):
    undisturbed, stopped = (runs.settings(tmp_path / name, data, 50, 25) for name in ("undisturbed", "stopped"))
    for values in (undisturbed, stopped):
        values["model"]["dit"]["num_layers"] = 1
    first = trainer(tmp_path, undisturbed)
    compiled = count_graphs(first)
    first.run()
    assert compiled[0] > 0
    assert set(compiled) == {compiled[0]}, "the first step compiles, and no later one does"
    config = write_config(tmp_path / "stopped.yaml", stopped)
    command = [sys.executable, "-c", KILLED, str(config), "33", "step_00000025"]
    killed = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
                            capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert exact_figures(tmp_path / "stopped") == exact_figures(tmp_path / "undisturbed")[:33]
    second = trainer(tmp_path, stopped)
    assert second.steps_done == 25
    second.run()
    assert "resuming after step 25" in capsys.readouterr().out
    assert exact_figures(tmp_path / "stopped") == exact_figures(tmp_path / "undisturbed")
    paths = [tmp_path / name / "checkpoints" / "step_00000050" for name in ("undisturbed", "stopped")]
    expected, found = map(tensors_of, paths)
    assert expected.keys() == found.keys()
    assert {group for group, _ in found} == {"parameters", "ema", "adam_m", "adam_v"}
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=str(key))
    states = [open_checkpoint(path).state for path in paths]
    for state in states:
        state["configuration"].pop("output_dir")
    assert states[0] == states[1]
    for batch, same in zip(first.inputs(50), second.inputs(50), strict=True):
        for array, other in zip(batch, same, strict=True):
            np.testing.assert_array_equal(array, other)
    assert (tmp_path / "stopped" / "loss_curve.png").read_bytes()[:4] == b"\x89PNG"


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_resumed(tmp_path, data, capsys):
    values = pynative(tmp_path / "run", data, steps=4, every=2)
    trainer(tmp_path, values).run()
    expected = tensors_of(tmp_path / "run" / "checkpoints" / "step_00000004")
    file = tmp_path / "run" / "checkpoints" / "step_00000004" / "adam_v" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    again = trainer(tmp_path, values)
    assert again.steps_done == 2
    assert f"{file} is damaged" in capsys.readouterr().out
    again.run()
    for key, array in tensors_of(tmp_path / "run" / "checkpoints" / "step_00000004").items():
        np.testing.assert_array_equal(array, expected[key])


def test_where_every_checkpoint_is_damaged_nothing_starts(tmp_path, data, finished):
    values = pynative(tmp_path / "run", data, steps=3, every=3)
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step_00000003" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="none of the 1 checkpoints"):
        trainer(tmp_path, values)


def test_a_half_written_checkpoint_is_named_and_never_used(tmp_path, data, capsys):
    values = pynative(tmp_path / "run", data)
    half = tmp_path / "run" / "checkpoints" / ".step_00000003.saving" / "ema"
    half.mkdir(parents=True)
    assert trainer(tmp_path, values).steps_done == 0
    assert ".step_00000003.saving was never finished" in capsys.readouterr().out


def test_checkpoints_are_not_overwritten_unasked(tmp_path, data):
    values = pynative(tmp_path / "run", data)
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    store.save(1, {"parameters": {"a": np.zeros(1)}}, {})
    store.wait()
    with pytest.raises(ValueError, match="resume_training is false"):
        trainer(tmp_path, values, "resume_training=false")


@pytest.mark.parametrize("bad", ["data", "weight"])
def test_a_number_that_is_none_stops_before_the_update_and_names_step_and_rank(tmp_path, data, bad, monkeypatch):
    run = trainer(tmp_path, pynative(tmp_path / "run", data, steps=6, every=2))
    good = run.source.batch

    def batch(step):
        found = good(step)
        if step == 3 and bad == "data":
            found.latents[1, 2, 0, 3, 3] = np.inf
        return found

    monkeypatch.setattr(run.source, "batch", batch)
    step = run.learner._step
    if bad == "weight":
        monkeypatch.setattr(step, "_squared_norms", _infinite_at(step._squared_norms, call=4))
    updates = []
    plain = step.update
    monkeypatch.setattr(step, "update", lambda *arguments: (plain(*arguments), updates.append(arguments[2])))
    with pytest.raises(FloatingPointError, match="step 4: loss or gradient is not finite on rank 0") as caught:
        run.run()
    first, second = good(3).names
    suspects = f"{second} (not finite as stored)" if bad == "data" else f"{first}, {second}"
    assert str(caught.value).endswith(f"Samples of the step: rank 0: {suspects}. train_dataset.exclude leaves samples "
                                      "out, by name")
    assert updates == [0, 1, 2]
    assert [path.name for path in run.store.paths()] == ["step_00000002"]
    assert CheckpointStore(run.store.folder).newest().step == 2


def _infinite_at(function, call):
    calls = []

    def wrapped(tensors):
        calls.append(None)
        return function(tensors) * (float("inf") if len(calls) == call else 1.0)

    return wrapped


@pytest.mark.parametrize("group", ["parameters", "ema"])
def test_training_starts_from_a_training_checkpoint_or_its_average(tmp_path, data, finished, group):
    shutil.copytree(finished, tmp_path / "first")
    source = tmp_path / "first" / "checkpoints" / "step_00000003"
    second = pynative(tmp_path / "second", data)
    run = trainer(tmp_path, second, f"load_checkpoint={source / group}", "run_mode=finetune")
    assert run.steps_done == 0
    for name, array in run.learner.state.copy_to_host()["parameters"].items():
        np.testing.assert_array_equal(array, open_checkpoint(source).groups[group][name].numpy())
    file = source / group / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="refused"):
        trainer(tmp_path, pynative(tmp_path / "third", data), f"load_checkpoint={source / group}")


def test_weights_of_another_model_are_refused(tmp_path, data, finished):
    shutil.copytree(finished, tmp_path / "first")
    source = tmp_path / "first" / "checkpoints" / "step_00000003" / "ema"
    with pytest.raises(ValueError, match="does not fit the network"):
        trainer(tmp_path, pynative(tmp_path / "second", data), f"load_checkpoint={source}", "model.dit.ffn_dim=20")
    with pytest.raises(ValueError, match="model.dit.ffn_dim: 24 then, 20 now"):
        trainer(tmp_path, pynative(tmp_path / "first", data), "model.dit.ffn_dim=20")


def test_accumulated_batches_are_worth_one_large_one(tmp_path, data):
    large = trainer(tmp_path, pynative(tmp_path / "large", data), "runner_config.batch_size=4")
    small = trainer(tmp_path, pynative(tmp_path / "small", data), "runner_config.gradient_accumulation_steps=2")
    expected, found = (run.learner.gradients(run.inputs(0)) for run in (large, small))
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.norm == pytest.approx(expected.norm, rel=1e-5)
    for value, other in zip(expected.values, found.values, strict=True):
        np.testing.assert_allclose(other.asnumpy() * found.scale, value.asnumpy(), rtol=1e-4, atol=1e-6)
    for run, gradients in ((large, expected), (small, found)):
        run.learner._step.update(gradients, 1.0, 0)
    for key, array in large.learner.state.copy_to_host()["adam_m"].items():
        np.testing.assert_allclose(small.learner.state.copy_to_host()["adam_m"][key], array, rtol=1e-4, atol=1e-7)


def test_random_data_says_so_in_every_progress_line(tmp_path, data, capsys):
    values = pynative(tmp_path / "run", data, steps=3)
    values["train_dataset"] = {"kind": "random", "latent_size": [1, 4, 4]}
    trainer(tmp_path, values).run()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == 3
    assert all("RANDOM DATA" in line for line in lines)


def test_figures_evaluation_and_scalars_are_written(tmp_path, data, capsys):
    values = pynative(tmp_path / "run", data, steps=3)
    values["eval_dataset"] = {"path": str(data), "clips": 2, "sigmas": 3, "every": 2}
    values["callbacks"]["trackers"] = ["tensorboard"]
    run = trainer(tmp_path, values)
    weights = run.learner.state.copy_to_host()
    run._evaluate(None)
    for group, arrays in run.learner.state.copy_to_host().items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, weights[group][name])
    run.run()
    records = read_metrics(tmp_path / "run")
    evaluated = {record["step"]: record for record in records if "eval_loss" in record}
    assert list(evaluated) == [0, 2, 3]
    assert evaluated[0]["eval_loss"] == evaluated[0]["eval_loss_ema"] != evaluated[3]["eval_loss"]
    assert evaluated[3]["eval_loss_ema"] != evaluated[3]["eval_loss"]
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("step 3/3"))
    for word in ("loss", "norm", "s/step", "samples/s", "MFU", "left"):
        assert word in line
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents*"))
    assert json.loads((tmp_path / "run" / "configuration.json").read_text())["seed"] == 3


def test_an_evaluation_that_a_stop_left_out_is_made(tmp_path, data, capsys):
    """Killed between the last checkpoint and the evaluation that was due, or between an earlier pair of them."""
    values = pynative(tmp_path / "run", data, steps=4, every=2)
    values["eval_dataset"] = {"path": str(data), "clips": 1, "sigmas": 2, "every": 2}
    trainer(tmp_path, values).run()
    whole = read_metrics(tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in whole if not ("eval_loss" in r and r["step"] == 4)))
    trainer(tmp_path, values).run()
    made = [record for record in read_metrics(tmp_path / "run") if "eval_loss" in record]
    assert made == [record for record in whole if "eval_loss" in record]
    assert "nothing to do" not in capsys.readouterr().out
    before = file.read_text()
    trainer(tmp_path, values).run()
    assert "nothing to do: all 4 steps are done" in capsys.readouterr().out
    assert file.read_text() == before


def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(tmp_path, data, capsys):
    values = pynative(tmp_path / "run", data, steps=5, every=50)
    run = trainer(tmp_path, values)
    runs.ask_for_an_end(run, step=3)
    with pytest.raises(SystemExit) as caught:
        run.run()
    assert caught.value.code == 143
    assert "SIGTERM: step 3 is done and saved" in capsys.readouterr().out
    assert CheckpointStore(run.store.folder).newest().step == 3
    trainer(tmp_path, values).run()
    trainer(tmp_path, pynative(tmp_path / "undisturbed", data, steps=5, every=50)).run()
    assert exact_figures(tmp_path / "run") == exact_figures(tmp_path / "undisturbed")


def test_excluded_samples_are_counted_and_may_be_added_when_a_run_goes_on(tmp_path, data, capsys):
    values = pynative(tmp_path / "run", data, steps=1, every=1)
    values["lr_schedule"]["warmup_steps"] = 0
    trainer(tmp_path, values).run()
    run = trainer(tmp_path, values, "train_dataset.exclude=[clip3, clip5]", "runner_config.steps=2")
    assert run.steps_done == 1
    assert "2 samples are left out (train_dataset.exclude)" in capsys.readouterr().out
    assert len(run.source) == 10


def test_a_failed_save_ends_the_run_at_the_next_step(tmp_path, data, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ospnext_ms.storage.checkpoint_store.write_file", full_disk)
    run = trainer(tmp_path, pynative(tmp_path / "run", data, steps=50, every=2))
    with pytest.raises(OSError, match=r"the checkpoint .*step_00000002 could not be written: No space left"):
        run.run()
    assert 2 <= run.steps_done <= 10


def test_recomputed_blocks_give_the_same_gradients(tmp_path, data):
    values = runs.settings(tmp_path / "run", data)
    values["model"]["dit"]["num_layers"] = 1
    plain, recomputed = (trainer(tmp_path, values, f"recompute_config.recompute={on}") for on in ("false", "true"))
    expected, found = (run.learner.gradients(run.inputs(0)) for run in (plain, recomputed))
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    for value, other in zip(expected.values, found.values, strict=True):
        np.testing.assert_allclose(other.asnumpy(), value.asnumpy(), rtol=1e-4, atol=1e-6)
