r"""The experiment of hif8_experiment.py in PyTorch on a GPU: many seeds in minutes, each part of the recipe apart, and
what may be added to it (from the repository's root, after the data of yaml_configs/train/tiny.yaml's head has been
prepared)

    python -m tools.experiments.hif8_experiment_torch --data output/digits_cache \
        --held-out output/digits_held_out_cache --seeds 0 1 2 3 4 5 --batch-size 4 --learning-rate 1e-3 \
        --device cuda --output output/hif8_torch

Trains torch_reference's networks, whose HiF8 is written independently of ospnext_ms.quant, from the full tiny model's
weights on the batches, noise and noise levels of `python -m ospnext_ms train --config yaml_configs/train/tiny.yaml`:
the same for every recipe of a seed. The figure is the loss of the averaged weights on that configuration's
eval_dataset. With v the velocity that weights give when computed in HiF8, u when computed in fp32, and y the target,

    loss = mean (v - y)^2 = mean (u - y)^2 + mean (v - u)^2 + 2 mean (v - u)(u - y)

so what a recipe costs is told apart: other weights (the first term less the loss of fp32's), rounding noise (the
second), and what the noise has to do with the network's own error (the third). The weights that fp32 found are computed
in every recipe too. report.json has every run, and the table's means over the seeds. `--weights FILE` trains nothing.
"""

import argparse
import contextlib
import json
import math
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from ospnext_ms.config.reader import load_config
from ospnext_ms.config.train import TrainConfig
from ospnext_ms.models.config import QuantConfig
from ospnext_ms.training.clipping import AdaptiveClipper
from ospnext_ms.training.inputs import FixedInputs, StepInputs, open_source
from tools.tiny_family.loop import Ema
from tools.tiny_family.recorded import RecordedStep
from tools.torch_reference import hif8
from tools.torch_reference.flow import velocity_loss
from tools.torch_reference.loading import load

CONFIG = Path("yaml_configs/train/tiny.yaml")
HIF8 = {"quant": "hif8", "quant_attention": "hif8"}


@dataclass(frozen=True)
class Recipe:
    """How a network computes. `changes`: of the DiTConfig. `plain_share`: the first part of the steps is in fp32."""

    changes: dict = field(default_factory=dict)
    refinements: hif8.Refinements = hif8.Refinements()
    plain_share: float = 0.0


def refined(**refinements):
    """The recipe with refinements."""
    return Recipe(HIF8, hif8.Refinements(**refinements))


RECIPES = {
    "fp32": Recipe(),
    "linears": Recipe({"quant": "hif8"}),
    "attention": Recipe({"quant_attention": "hif8"}),
    "hif8": Recipe(HIF8),
    "hif8_32768": Recipe(HIF8 | {"quant_config": QuantConfig(scale_max_forward=32768.0, scale_max_backward=32768.0)}),
    "centred_keys": refined(centre_keys=True),
    "centred_values": refined(centre_values=True),
    "centred_keys_and_values": refined(centre_keys=True, centre_values=True),
    "scales_per_head": refined(head_scales=True),
    "plain_ends": refined(plain_ends=1),
    "plain_start": Recipe(HIF8, plain_share=0.2),
    "plain_half": Recipe(HIF8, plain_share=0.5),
    "all_free": Recipe(HIF8, hif8.Refinements(centre_keys=True, centre_values=True, head_scales=True), 0.2),
    "all": Recipe(HIF8, hif8.Refinements(centre_keys=True, centre_values=True, head_scales=True, plain_ends=1), 0.2),
}


class OneProcess:
    """What StepInputs asks of a mesh."""

    data_rank, data_size = 0, 1


def parse_arguments(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of prepare-data to train on")
    parser.add_argument("--held-out", type=Path, required=True, help="folder of prepare-data to measure on")
    parser.add_argument("--output", type=Path, required=True, help="folder for report.json")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--weights", type=Path, help="train nothing: compute this checkpoint in every recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                        help="another change of the configuration")
    return parser.parse_args(argv)


def configure(arguments, seed):
    """The TrainConfig of a seed."""
    values = {"seed": seed, "runner_config.steps": arguments.steps, "runner_config.batch_size": arguments.batch_size,
              "lr_schedule.learning_rate": arguments.learning_rate, "train_dataset.path": arguments.data,
              "eval_dataset.path": arguments.held_out}
    return load_config(TrainConfig, CONFIG, [f"{key}={value}" for key, value in values.items()] + arguments.overrides)


def start_of(config, device):
    """A network with the weights that the configuration starts from, in fp32."""
    return load(hif8.build(config.model.dit), config.load_checkpoint).to(device)


def compute_in(model, config, recipe):
    """Makes the model compute as a Recipe says, after its plain steps."""
    return hif8.set_arithmetic(model, replace(config.model.dit, **recipe.changes), recipe.refinements)


def learning_rate(schedule, step, steps):
    """Linear warm-up, then half a cosine down to lr_end."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    position = (step + 1 - schedule.warmup_steps) / (steps - schedule.warmup_steps)
    return schedule.lr_end + (schedule.learning_rate - schedule.lr_end) * 0.5 * (1 + math.cos(math.pi * position))


def inputs_of(config, device):
    """What every step of a configuration is fed, as tensors on the device: the loss's arguments, a list of tuples."""
    inputs = StepInputs(config, open_source(config, OneProcess), OneProcess)
    return [tuple(torch.from_numpy(array).to(device) for array in batch)
            for (batch,) in inputs.ahead(0, config.runner_config.steps)]


class Training:
    """A network on its way from the configuration's weights to a recipe's. A step is asked for with `start_step` and
    done with `finish_step`, so that a GPU can work on those of several trainings at once.

    Args:
        inputs: see inputs_of.
    """

    def __init__(self, config, recipe, inputs, device):
        self.config, self.recipe, self.inputs, self.device = config, recipe, inputs, device
        self.model = start_of(config, device)
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None
        # Norms, biases and modulation are not decayed.
        groups = {True: [], False: []}
        for name, parameter in self.model.named_parameters():
            groups[name.endswith("weight") and "norm" not in name].append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": groups[True], "weight_decay": config.optimizer.weight_decay},
             {"params": groups[False], "weight_decay": 0.0}],
            betas=tuple(config.optimizer.betas), eps=config.optimizer.eps)
        self.parameters = list(self.model.parameters())
        self.ema = Ema(self.model, config.ema.decay)
        self.clip = AdaptiveClipper(config.clipping.decay, config.clipping.deviations, config.clipping.start)
        self.plain_steps = round(recipe.plain_share * config.runner_config.steps)
        self.recorded = RecordedStep(self._gradients, device)
        self.found = None
        if device.type == "cuda":
            torch.cuda.synchronize()

    def _gradients(self, *inputs):
        found = torch.autograd.grad(velocity_loss(self.model, *inputs), self.parameters)
        return {"gradients": found, "norm": torch.nn.utils.get_total_norm(found)}

    def _on_stream(self):
        return torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()

    def start_step(self, step):
        """Begins to compute the gradients."""
        if step == self.plain_steps:
            compute_in(self.model, self.config, self.recipe)
            self.recorded = RecordedStep(self._gradients, self.device)
        with self._on_stream():
            self.found = self.recorded(*self.inputs[step])

    def finish_step(self, step):
        """Updates the weights and their average."""
        with self._on_stream():
            factor = self.clip(self.found["norm"].item())
            for parameter, gradient in zip(self.parameters, self.found["gradients"], strict=True):
                parameter.grad = gradient
            torch._foreach_mul_(list(self.found["gradients"]), factor)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.config.lr_schedule, step, self.config.runner_config.steps)
            self.optimizer.step()
            self.ema.update()

    def finish(self):
        """The model with its averaged weights."""
        if self.stream:
            torch.cuda.synchronize()
        self.ema.copy_to_module()
        return self.model.requires_grad_(False)


def train(config, recipe, device):
    """A network trained as configured, with its averaged weights. `recipe`: of RECIPES."""
    return train_all([config], recipe, [inputs_of(config, device)], device)[0]


def train_all(configs, recipe, inputs, device):
    """The networks of several seeds' configurations, trained step by step beside each other."""
    trainings = [Training(config, RECIPES[recipe], tensors, device)
                 for config, tensors in zip(configs, inputs, strict=True)]
    for step in range(configs[0].runner_config.steps):
        for training in trainings:
            training.start_step(step)
        for training in trainings:
            training.finish_step(step)
    return [training.finish() for training in trainings]


class FixedSet:
    """The clips, noise and noise levels of a configuration's eval_dataset, on the device."""

    def __init__(self, config, device):
        self.config, self.device = config, device
        fixed = FixedInputs(config.eval_dataset, config.flow, config.model.dit)
        self.inputs = [tuple(torch.from_numpy(array).to(device) for array in fixed(clip)) for clip in range(len(fixed))]
        self.target = torch.stack([noise - x0 for x0, noise, _, _ in self.inputs])
        self.networks = {}

    @torch.no_grad()
    def velocities(self, model, recipe):
        """What the model's weights give for every clip at all its levels, computed as a recipe of RECIPES says:
        [clips, levels, C, T, H, W]."""
        if recipe not in self.networks:
            network = compute_in(start_of(self.config, self.device), self.config, RECIPES[recipe])
            self.networks[recipe] = network, RecordedStep(partial(_velocity, network), self.device)
        network, recorded = self.networks[recipe]
        network.load_state_dict(model.state_dict())
        return torch.stack([recorded(*inputs)["velocity"].clone() for inputs in self.inputs])

    def compare(self, model, recipe):
        """{"loss": computed as a recipe says, "fp32_loss": in fp32, "noise": mean square of their difference}."""
        plain = self.velocities(model, "fp32")
        computed = self.velocities(model, recipe) if RECIPES[recipe].changes else plain
        return {"loss": mean_square(computed - self.target), "fp32_loss": mean_square(plain - self.target),
                "noise": mean_square(computed - plain)}


def _velocity(model, x0, noise, sigma, text):
    return {"velocity": model(torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1, 1)), 1000 * sigma, text)}


def mean_square(x):
    """A number, summed in fp64."""
    return x.double().square().mean().item()


def summary(runs):
    """{recipe: {"loss": mean over the seeds, and per cent of the same seed's fp32 loss as [mean, standard error]}}:
    "above" it lies the loss, of which "weights", "noise" and "correlation" are the parts (see the head of this file).

    `runs`: {seed: {recipe: result of FixedSet.compare, for fp32 with "computed_in": {recipe: another result}}}.
    """
    rows = {}
    for recipe in next(iter(runs.values())):
        rows[recipe] = _row([(seed[recipe], seed["fp32"]["loss"]) for seed in runs.values()])
    for recipe in next(iter(runs.values()))["fp32"]["computed_in"]:
        rows[f"fp32's weights, computed in {recipe}"] = _row(
            [(seed["fp32"]["computed_in"][recipe], seed["fp32"]["loss"]) for seed in runs.values()])
    return rows


def _row(results):
    parts = {"above": lambda run, base: run["loss"] - base, "weights": lambda run, base: run["fp32_loss"] - base,
             "noise": lambda run, base: run["noise"],
             "correlation": lambda run, base: run["loss"] - run["fp32_loss"] - run["noise"]}
    row = {"loss": statistics.fmean(run["loss"] for run, _ in results)}
    for name, part in parts.items():
        percent = [100 * part(run, base) / base for run, base in results]
        error = statistics.stdev(percent) / math.sqrt(len(percent)) if len(percent) > 1 else None
        row[name] = [statistics.fmean(percent), error]
    return row


def print_table(rows):
    """The summary for a reader: per cent of the fp32 loss."""
    print(f"{'':50}{'loss':>9}" + "".join(f"{name:>18}" for name in ("above", "weights", "noise", "correlation")))
    for name, row in rows.items():
        cells = (f"{mean:+.2f}" + (f" +- {error:.2f}" if error is not None else "")
                 for mean, error in (row[part] for part in ("above", "weights", "noise", "correlation")))
        print(f"{name:50}{row['loss']:9.5f}" + "".join(f"{cell:>18}" for cell in cells))


def compute(arguments, fixed, model):
    """Loads the given checkpoint and compares its losses in the recipes: computed.json, and a table."""
    load(model, arguments.weights)
    found = {recipe: fixed.compare(model, recipe) for recipe in arguments.recipes if RECIPES[recipe].changes}
    (arguments.output / "computed.json").write_text(json.dumps(found, indent=1) + "\n")
    print_table({recipe: _row([(run, run["fp32_loss"])]) for recipe, run in found.items()})


def main(argv=None):
    arguments = parse_arguments(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    device = torch.device(arguments.device)
    configs = [configure(arguments, seed) for seed in arguments.seeds]
    if arguments.weights:
        compute(arguments, FixedSet(configs[0], device), start_of(configs[0], device))
        return
    with ThreadPoolExecutor(len(configs)) as pool:
        inputs = list(pool.map(lambda config: inputs_of(config, device), configs))
    fixed, runs = FixedSet(configs[0], device), {seed: {} for seed in arguments.seeds}
    for recipe in ["fp32"] + [name for name in arguments.recipes if name != "fp32"]:
        began = time.perf_counter()
        models = train_all(configs, recipe, inputs, device)
        for seed, model in zip(arguments.seeds, models, strict=True):
            runs[seed][recipe] = fixed.compare(model, recipe)
            if recipe == "fp32":
                runs[seed][recipe]["computed_in"] = {name: fixed.compare(model, name)
                                                     for name in arguments.recipes if RECIPES[name].changes}
        print(f"{recipe}: {time.perf_counter() - began:.1f} s, losses "
              f"{[round(runs[seed][recipe]['loss'], 5) for seed in arguments.seeds]}", flush=True)
        report = {"steps": arguments.steps, "batch_size": arguments.batch_size, "dim": configs[0].model.dit.dim,
                  "learning_rate": arguments.learning_rate, "device": str(device),
                  "target": mean_square(fixed.target), "summary": summary(runs), "runs": runs}
        (arguments.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print_table(report["summary"])


if __name__ == "__main__":
    main()
