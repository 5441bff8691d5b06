"""Training in real processes: the same losses as in one, and checkpoints that any number of processes takes up."""

import shutil

import numpy as np
import pytest

from ospnext_ms.parallel.mesh import Mesh
from ospnext_ms.reporting.metrics import read_metrics
from ospnext_ms.runtime import start
from ospnext_ms.storage.peft_format import read_stored_adapter
from ospnext_ms.storage.training_checkpoint import open_checkpoint, problems_of
from ospnext_ms.training.loop import Trainer
from tests.distributed.cases import MORE, STEPS, adapter_settings, train_settings
from tests.support import train_runs as runs

pytestmark = pytest.mark.processes


def losses(folder):
    return [(record["loss"], record["gradient_norm"]) for record in read_metrics(folder)]


@pytest.fixture(scope="module")
def four(job, training_folder):
    """(data, folder of a run in four processes: two videos, each on two of them, weights spread over all)."""
    job(4)
    return training_folder / "data", training_folder / "save"


@pytest.fixture(scope="module")
def two(job, training_folder):
    """(results of both, folder) of two processes that take up the checkpoint of four, and of runs that end early."""
    return job(2), training_folder


@pytest.fixture(scope="module")
def one(four, tmp_path_factory):
    """(trainer, weights it took up, folder) of one process that takes up the checkpoint of four."""
    data, source = four
    folder = tmp_path_factory.mktemp("one")
    shutil.copytree(source, folder / "run")
    config = runs.read_config(folder / "c.yaml", train_settings(folder / "run", data, MORE))
    trainer = Trainer(config, start(config.context), Mesh.single())
    restored = trainer.learner.state.copy_to_host()
    trainer.run()
    return trainer, restored, folder / "run"


def test_four_processes_have_the_losses_of_one(four, tmp_path):
    data, folder = four
    config = runs.read_config(tmp_path / "c.yaml", train_settings(tmp_path / "run", data, STEPS))
    Trainer(config, start(config.context), Mesh.single()).run()
    np.testing.assert_allclose(losses(folder), losses(tmp_path / "run"), rtol=2e-5)
    expected = open_checkpoint(tmp_path / "run" / "checkpoints" / f"step_{STEPS:08d}").groups["ema"]
    found = open_checkpoint(folder / "checkpoints" / f"step_{STEPS:08d}").groups["ema"]
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)


def test_saved_by_four_and_taken_up_by_one_bit_by_bit(one, four):
    _, restored, _ = one
    stored = open_checkpoint(four[1] / "checkpoints" / f"step_{STEPS:08d}").groups
    assert stored.keys() == restored.keys()
    for group, arrays in restored.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, stored[group][name].numpy(), err_msg=f"{group}/{name}")


def test_saved_by_four_and_taken_up_by_two_bit_by_bit(two):
    for result in (rank["resume"] for rank in two[0]):
        assert result["steps_done"] == STEPS
        assert result["compared"] > 100
        assert result["wrong"] == []


def test_one_and_two_go_on_alike(one, two):
    np.testing.assert_allclose(losses(two[1] / "resume"), losses(one[2]), rtol=1e-4)
    assert len(losses(one[2])) == MORE


@pytest.mark.slow
def test_two_compiled_processes_go_on_like_one(job, one, training_folder):
    job(2, "slow")
    np.testing.assert_allclose(losses(training_folder / "resume compiled"), losses(one[2]), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapters ssp", "adapters data"])
def test_adapters_of_two_processes_are_those_of_one(job, training_folder, tmp_path, name):
    """A video on both of them; then a video on each, with the frozen weights spread over both."""
    job(2, "slow")
    values = adapter_settings(tmp_path / "run", training_folder / "data", training_folder / "base.safetensors")
    config = runs.read_config(tmp_path / "c.yaml", values)
    Trainer(config, start(config.context), Mesh.single()).run()
    folder = training_folder / name
    np.testing.assert_allclose(losses(folder), losses(tmp_path / "run"), rtol=1e-4)
    assert len(losses(folder)) == MORE
    for adapter in ("adapter_ema", f"checkpoints/step_{STEPS:08d}/adapter"):
        expected, found = (read_stored_adapter(at / adapter).pairs for at in (tmp_path / "run", folder))
        assert found.keys() == expected.keys()
        for layer, pair in expected.items():
            for array, other in zip(pair, found[layer], strict=True):
                np.testing.assert_allclose(other, array, rtol=1e-3, atol=2e-5, err_msg=layer)
    assert problems_of(folder / "checkpoints" / f"step_{MORE:08d}") == []


def test_bad_data_on_one_rank_stop_all_before_the_update_and_are_named(two):
    results, folder = two
    for result in (rank["nan"] for rank in results):
        assert result["steps_done"] == 1
        assert "step 2: loss or gradient is not finite on rank 1 " in result["message"]
        assert ". Samples of the step: rank 1: clip" in result["message"]
    assert not (folder / "nan" / "checkpoints" / "step_00000002").exists()


def test_processes_that_were_given_different_settings_all_say_so(two):
    results, folder = two
    messages = {rank["disagree"]["message"] for rank in results}
    assert len(messages) == 1
    message = messages.pop()
    assert "seed is not on rank 1 what it is on rank 0; lr_schedule is not on rank 1 what it is on rank 0" in message
    assert not (folder / "disagree" / "checkpoints").exists()
