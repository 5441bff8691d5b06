"""The HiF8 experiment in PyTorch: its training against ospnext_ms's own, and its report."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ospnext_ms.models.config import DiTConfig
from ospnext_ms.parallel.mesh import Mesh
from ospnext_ms.runtime import start
from ospnext_ms.storage.training_checkpoint import open_checkpoint
from ospnext_ms.training.fixed_set import FixedSet
from ospnext_ms.training.loop import Trainer
from tests.support import train_runs as runs
from tools.experiments import hif8_experiment_torch as experiment
from tools.torch_reference.dit import OSPNextDiT

STEPS = 6
QUANTISED = {"quant": "hif8", "quant_attention": "hif8"}


def settings(folder, data, weights, dit):
    """A TrainConfig, as nested dicts, that starts from a file and ends with a checkpoint."""
    values = runs.settings(folder / "run", data, STEPS, STEPS)
    values["lr_schedule"]["learning_rate"] = 1e-2
    return values | {"run_mode": "finetune", "load_checkpoint": str(weights), "model": {"dit": dit},
                     "ema": {"decay": 0.9, "warm_up": True}, "context": {"device_target": "CPU", "mode": "pynative"}}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A TrainConfig of a network of some thousand weights."""
    folder = tmp_path_factory.mktemp("torch_experiment")
    torch.manual_seed(0)
    network = OSPNextDiT(DiTConfig(**runs.DIT))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_file(network.state_dict(), folder / "start.safetensors")
    data = runs.write_cache(folder / "data")
    values = settings(folder, data, folder / "start.safetensors", runs.DIT)
    values["eval_dataset"] = {"path": str(data), "clips": 3, "sigmas": 2, "every": STEPS}
    return runs.read_config(folder / "c.yaml", values)


def test_trains_as_ospnext_ms_does(config, tmp_path):
    """Schedule and average differ by one step; data, noise, levels, clipping, decay and arithmetic do not."""
    values = settings(tmp_path, config.train_dataset.path, config.load_checkpoint, runs.DIT | QUANTISED)
    own = runs.read_config(tmp_path / "c.yaml", values)
    trainer = Trainer(own, start(own.context), Mesh.single())
    before = trainer.learner.state.copy_to_host()["parameters"]
    trainer.run()
    stored = open_checkpoint(tmp_path / "run" / "checkpoints" / f"step_{STEPS:08d}").groups["ema"]
    model = experiment.train(config, "hif8", torch.device("cpu"))
    way = {name: stored[name].numpy() - before[name] for name in before}
    apart = {name: parameter.detach().numpy() - stored[name].numpy() for name, parameter in model.named_parameters()}
    assert norm(apart) < 0.15 * norm(way), norm(apart) / norm(way)


def norm(arrays):
    """Euclidean norm of all arrays together."""
    return float(np.sqrt(sum(np.square(array.astype(np.float64)).sum() for array in arrays.values())))


def test_measures_what_ospnext_ms_measures(config):
    device = torch.device("cpu")
    model = experiment.start_of(config, device)
    fixed = FixedSet(config.eval_dataset, config.flow, config.model.dit, Mesh.single())

    def loss(x0, noise, sigma, text):
        arrays = (torch.from_numpy(tensor.asnumpy()) for tensor in (x0, noise, sigma, text))
        with torch.no_grad():
            return experiment.velocity_loss(model, *arrays)

    found = experiment.FixedSet(config, device).compare(model, "fp32")
    assert found["loss"] == found["fp32_loss"] == pytest.approx(fixed.mean_loss(loss), rel=1e-6)
    assert found["noise"] == 0


def test_noise_is_what_computing_differently_adds(config):
    device = torch.device("cpu")
    fixed, model = experiment.FixedSet(config, device), experiment.start_of(config, device)
    found = {name: fixed.compare(model, name) for name in ("linears", "hif8", "hif8_32768")}
    assert len({result["fp32_loss"] for result in found.values()}) == 1
    assert 0 < found["linears"]["noise"] < found["hif8"]["noise"] < found["hif8_32768"]["noise"]


def test_a_plain_start_is_fp32_until_its_end(config):
    device = torch.device("cpu")
    inputs = [experiment.inputs_of(config, device)[:STEPS]]

    def weights(recipe):
        (model,) = experiment.train_all([config], recipe, inputs, device)
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    fp32, half, hif8 = weights("fp32"), weights("plain_half"), weights("hif8")
    assert not torch.equal(half, fp32)
    assert (half - fp32).norm() < (hif8 - fp32).norm()


def test_report_means_over_the_seeds(config, tmp_path, monkeypatch, capsys):
    losses = {(0, "fp32"): 0.5, (0, "hif8"): 0.51, (1, "fp32"): 0.25, (1, "hif8"): 0.26}

    class Fixed(experiment.FixedSet):
        def compare(self, model, recipe):
            seed, trained = model
            loss = losses[seed, recipe if trained == "fp32" else trained]
            return {"loss": loss, "fp32_loss": losses[seed, "fp32"], "noise": 0.0025}

    monkeypatch.setattr(experiment, "configure", lambda arguments, seed: config)
    monkeypatch.setattr(experiment, "train_all", lambda configs, recipe, *_: [(seed, recipe) for seed in (0, 1)])
    monkeypatch.setattr(experiment, "FixedSet", Fixed)
    experiment.main(["--data", "d", "--held-out", "h", "--output", str(tmp_path), "--seeds", "0", "1",
                     "--recipes", "fp32", "hif8"])
    summary = json.loads((tmp_path / "report.json").read_text())["summary"]
    assert summary["hif8"]["loss"] == pytest.approx(0.385)
    assert summary["hif8"]["above"] == pytest.approx([3.0, 1.0])
    assert summary["hif8"]["weights"] == [0, 0]
    assert summary["hif8"]["noise"] == pytest.approx([0.75, 0.25])
    assert summary["hif8"]["correlation"] == pytest.approx([2.25, 0.75])
    assert summary["fp32's weights, computed in hif8"]["above"] == pytest.approx([3.0, 1.0])
    assert "+3.00 +- 1.00" in capsys.readouterr().out


def test_given_weights_are_computed_in_every_recipe(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "configure", lambda arguments, seed: config)
    experiment.main(["--data", "d", "--held-out", "h", "--output", str(tmp_path), "--seeds", "0", "--weights",
                     str(config.load_checkpoint), "--recipes", "fp32", "hif8", "plain_ends"])
    found = json.loads((tmp_path / "computed.json").read_text())
    expected = experiment.FixedSet(config, torch.device("cpu"))
    assert found["hif8"] == expected.compare(experiment.start_of(config, torch.device("cpu")), "hif8")
    assert "plain_ends" in capsys.readouterr().out


def test_the_ablation_scales_to_the_largest_number():
    config = experiment.RECIPES["hif8_32768"].changes["quant_config"]
    assert (config.scale_max_forward, config.scale_max_backward) == (32768.0, 32768.0)
