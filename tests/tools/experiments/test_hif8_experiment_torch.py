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
    model = experiment.build(config, "fp32", torch.device("cpu"))
    fixed = FixedSet(config.eval_dataset, config.flow, config.model.dit, Mesh.single())

    def loss(x0, noise, sigma, text):
        arrays = (torch.from_numpy(tensor.asnumpy()) for tensor in (x0, noise, sigma, text))
        with torch.no_grad():
            return experiment.velocity_loss(model, *arrays)

    assert experiment.measure(model, config, torch.device("cpu")) == pytest.approx(fixed.mean_loss(loss), rel=1e-6)


def test_report_means_over_the_seeds(tmp_path, monkeypatch, capsys):
    losses = {(0, "fp32"): 0.5, (0, "hif8"): 0.51, (1, "fp32"): 0.25, (1, "hif8"): 0.26}

    def run(config, recipe, device):
        return {"loss": losses[config.seed, recipe], "seconds": 1.0, "other": 0.5}

    monkeypatch.setattr(experiment, "run", run)
    experiment.main(["--data", "d", "--held-out", "h", "--output", str(tmp_path), "--seeds", "0", "1",
                     "--recipes", "fp32", "hif8"])
    summary = json.loads((tmp_path / "report.json").read_text())["summary"]
    assert summary["hif8"]["loss"] == pytest.approx(0.385)
    assert summary["hif8"]["percent"] == pytest.approx([3.0, 1.0])
    assert summary["hif8, computed in fp32"]["percent"] == pytest.approx([50.0, 50.0])
    assert "+3.00 % +- 1.00" in capsys.readouterr().out


def test_the_ablation_scales_to_the_largest_number():
    config = experiment.RECIPES["hif8_32768"]["quant_config"]
    assert (config.scale_max_forward, config.scale_max_backward) == (32768.0, 32768.0)
