"""Runs that get SIGTERM in a step, in a save, in an evaluation, in a rollout, and go on: equal to undisturbed ones."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ospnext_ms.reporting.metrics import read_metrics
from ospnext_ms.storage.checkpoint_store import CheckpointStore
from tests.support import post_train_runs as policy_runs
from tests.support import train_runs as runs
from tests.support.configs import write_config
from tests.support.msrun import environment, run_workers
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.processes]

STEPS = 6


def train_settings(folder, data, processes):
    values = runs.settings(folder, data, steps=STEPS, every=2)
    values["context"]["mode"] = "pynative"
    values["model"]["dit"]["num_layers"] = 1
    values["runner_config"]["batch_size"] = 2 // processes
    values["parallel_config"] = {"data_parallel": processes}
    values["eval_dataset"] = {"path": str(data), "clips": 2, "sigmas": 1, "every": 2}
    return values


def policy_settings(folder, model, processes):
    values = policy_runs.settings(model, folder, runner_config={"iterations": 3})
    values["context"]["mode"] = "pynative"
    values["parallel_config"] = {"data_parallel": processes}
    values["evaluation"]["every"] = 1
    return values


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """{command: (function of settings, its data)}"""
    folder = tmp_path_factory.mktemp("sources")
    return {"train": (train_settings, runs.write_cache(folder / "data")),
            "post-train": (policy_settings, policy_runs.write_model(folder / "model"))}


def run(processes, folder, *command):
    """(exit status, output)"""
    if processes > 1:
        return run_workers(processes, folder, *command)
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment(), capture_output=True, text=True,
                          check=False, timeout=500)
    return done.returncode, done.stdout + done.stderr


def prepare(sources, command, folder, processes):
    settings, data = sources[command]
    folder.mkdir()
    return write_config(folder / "run.yaml", settings(folder / "out", data, processes))


@pytest.fixture(scope="module")
def undisturbed(sources, tmp_path_factory):
    """Function (command, processes) -> folder of a run without a signal."""
    done = {}

    def get(command, processes):
        if (command, processes) not in done:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            config = prepare(sources, command, folder, processes)
            status, output = run(processes, folder, "-m", "ospnext_ms", command, "--config", str(config))
            assert status == 0, output[-3000:]
            done[command, processes] = folder / "out"
        return done[command, processes]

    return get


def figures(folder):
    """All figures of a run but times, in order of steps."""
    return [{name: value for name, value in record.items() if "second" not in name and name != "mfu"}
            for record in read_metrics(folder)]


def tensors(folder):
    checkpoint = CheckpointStore(folder / "checkpoints").newest()
    return checkpoint.step, {(group, name): tensor.numpy() for group, members in checkpoint.groups.items()
                             for name, tensor in members.items()}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("command", "moment"), [
    ("train", "step"), ("train", "save"), ("train", "evaluation"), ("post-train", "rollout"), ("post-train", "save"),
    ("post-train", "evaluation"),
])
def test_interrupted_and_resumed_equals_undisturbed(undisturbed, sources, tmp_path, command, moment, processes):
    expected = undisturbed(command, processes)
    folder = tmp_path / "run"
    config = prepare(sources, command, folder, processes)
    # Where there are several, one that writes nothing: the others have to hear of it.
    options = [moment, str(processes - 1 if moment != "save" else 0), command, "--config", str(config)]
    status, output = run(processes, folder, "-m", "tests.support.signalled", *options)
    assert status == (143 if processes == 1 else 1), output[-3000:]
    assert "SIGTERM: the step is finished and saved" in output
    assert "the same command goes on from there" in output
    stopped_at, _ = tensors(folder / "out")
    assert 0 < stopped_at < len(figures(expected))
    status, output = run(processes, folder, "-m", "ospnext_ms", command, "--config", str(config))
    assert status == 0, output[-3000:]
    assert f"after {'step' if command == 'train' else 'iteration'} {stopped_at}" in output
    assert figures(folder / "out") == figures(expected)
    (step, found), (same_step, arrays) = tensors(folder / "out"), tensors(expected)
    assert step == same_step
    assert found.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key], array, err_msg=str(key))


def start_training(sources, folder, mode, setting, said):
    """A training job that has said `said` in a line."""
    config = prepare(sources, "train", folder, 1)
    command = [sys.executable, "-m", "ospnext_ms", "train", "--config", str(config), "--set", f"context.mode={mode}",
               "--set", setting]
    job = subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE)
    while said not in job.stdout.readline():
        assert job.poll() is None
    return job


@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_ctrl_c_says_a_word(sources, tmp_path, mode):
    """In graph mode MindSpore turns it into a SIGTERM of its own."""
    job = start_training(sources, tmp_path / "run", mode, "runner_config.steps=100000", "step 5/")
    os.kill(job.pid, 2)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 130
    assert "SIGINT: the step is finished and saved" in err
    assert "the same command goes on from there" in out


@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_a_second_ctrl_c_does_not_wait_for_the_step(sources, tmp_path, mode):
    # A step of half a minute or more.
    job = start_training(sources, tmp_path / "run", mode, "runner_config.gradient_accumulation_steps=8000",
                         "a checkpoint takes")
    time.sleep(10)
    os.kill(job.pid, signal.SIGINT)
    while "SIGINT: the step is finished and saved" not in job.stderr.readline():
        assert job.poll() is None
    # Two in the same moment are one wish.
    time.sleep(0.5)
    began = time.monotonic()
    os.kill(job.pid, signal.SIGINT)
    _, err = job.communicate(timeout=120)
    assert time.monotonic() - began < 20
    assert job.returncode == 130
    assert "SIGINT: ended at once" in err
    assert CheckpointStore(tmp_path / "run" / "out" / "checkpoints").newest() is None
