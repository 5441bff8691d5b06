r"""The experiment of hif8_experiment.py in PyTorch on a GPU: many seeds in minutes, linears and attention apart (from
the repository's root, after the data of yaml_configs/train/tiny.yaml's head has been prepared)

    python -m tools.experiments.hif8_experiment_torch --data output/digits_cache \
        --held-out output/digits_held_out_cache --seeds 0 1 2 3 4 5 --batch-size 4 --learning-rate 1e-3 \
        --device cuda --output output/hif8_torch

Trains torch_reference's networks, whose HiF8 is written independently of ospnext_ms.quant, from the full tiny model's
weights on the batches, noise and noise levels of `python -m ospnext_ms train --config yaml_configs/train/tiny.yaml`.
The figure is the loss of the averaged weights on that configuration's eval_dataset. Every run's weights are measured in
the arithmetic they were trained in and, those of `fp32` and `hif8`, in the other one: what rounding costs while
computing, and what it costs to have trained with it. report.json has every run, the table means over the seeds.
"""

import argparse
import json
import math
import statistics
import time
from dataclasses import replace
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
RECIPES = {
    "fp32": {},
    "linears": {"quant": "hif8"},
    "attention": {"quant_attention": "hif8"},
    "hif8": HIF8,
    "hif8_32768": HIF8 | {"quant_config": QuantConfig(scale_max_forward=32768.0, scale_max_backward=32768.0)},
}
OTHER_ARITHMETIC = {"fp32": "hif8", "hif8": "fp32"}


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
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                        help="another change of the configuration")
    return parser.parse_args(argv)


def configure(arguments, seed):
    """The TrainConfig of a seed."""
    values = {"seed": seed, "runner_config.steps": arguments.steps, "runner_config.batch_size": arguments.batch_size,
              "lr_schedule.learning_rate": arguments.learning_rate, "train_dataset.path": arguments.data,
              "eval_dataset.path": arguments.held_out}
    return load_config(TrainConfig, CONFIG, [f"{key}={value}" for key, value in values.items()] + arguments.overrides)


def build(config, recipe, device):
    """A network of a recipe with the weights that the configuration starts from."""
    model = hif8.build(replace(config.model.dit, **RECIPES[recipe]))
    return load(model, config.load_checkpoint).to(device)


def learning_rate(schedule, step, steps):
    """Linear warm-up, then half a cosine down to lr_end."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    position = (step + 1 - schedule.warmup_steps) / (steps - schedule.warmup_steps)
    return schedule.lr_end + (schedule.learning_rate - schedule.lr_end) * 0.5 * (1 + math.cos(math.pi * position))


def train(config, recipe, device):
    """A network trained as configured, with its averaged weights."""
    model = build(config, recipe, device)
    parameters, steps = list(model.parameters()), config.runner_config.steps
    # Norms, biases and modulation are not decayed.
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[name.endswith("weight") and "norm" not in name].append(parameter)
    optimizer = torch.optim.AdamW([{"params": groups[True], "weight_decay": config.optimizer.weight_decay},
                                   {"params": groups[False], "weight_decay": 0.0}],
                                  betas=tuple(config.optimizer.betas), eps=config.optimizer.eps)
    ema = Ema(model, config.ema.decay)
    clip = AdaptiveClipper(config.clipping.decay, config.clipping.deviations, config.clipping.start)

    def gradients(*inputs):
        loss = velocity_loss(model, *inputs)
        found = torch.autograd.grad(loss, parameters)
        return {"gradients": found, "norm": torch.nn.utils.get_total_norm(found)}

    recorded = RecordedStep(gradients, device)
    inputs = StepInputs(config, open_source(config, OneProcess), OneProcess)
    for step, (batch,) in enumerate(inputs.ahead(0, steps)):
        found = recorded(*(torch.from_numpy(array).to(device) for array in batch))
        factor = clip(found["norm"].item())
        for parameter, gradient in zip(parameters, found["gradients"], strict=True):
            parameter.grad = gradient
        torch._foreach_mul_(list(found["gradients"]), factor)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.lr_schedule, step, steps)
        optimizer.step()
        ema.update()
    ema.copy_to_module()
    return model


@torch.no_grad()
def measure(model, config, device):
    """Mean loss on the fixed clips, noise and noise levels."""
    fixed = FixedInputs(config.eval_dataset, config.flow, config.model.dit)
    losses = [velocity_loss(model, *(torch.from_numpy(array).to(device) for array in fixed(clip)))
              for clip in range(len(fixed))]
    return torch.stack(losses).mean().item()


def run(config, recipe, device):
    """{"loss", "seconds", and for fp32 and hif8 "other": the same weights' loss in the other arithmetic}."""
    began = time.perf_counter()
    model = train(config, recipe, device)
    result = {"loss": measure(model, config, device), "seconds": round(time.perf_counter() - began, 1)}
    if recipe in OTHER_ARITHMETIC:
        other = build(config, OTHER_ARITHMETIC[recipe], device)
        other.load_state_dict(model.state_dict())
        result["other"] = measure(other, config, device)
    return result


def summary(runs):
    """{recipe: {"loss": mean over the seeds, "percent": [mean above the same seed's fp32, its standard error]}}.

    `runs`: {seed: {recipe: result of `run`}}. "other" is summed up alike, the baseline being the fp32 run's own loss.
    """
    rows = {}
    for recipe in next(iter(runs.values())):
        for key in ("loss", "other"):
            pairs = [(seed[recipe][key], seed["fp32"]["loss"]) for seed in runs.values()
                     if key in seed[recipe] and "fp32" in seed]
            if pairs:
                percent = [100 * (value / baseline - 1) for value, baseline in pairs]
                error = statistics.stdev(percent) / math.sqrt(len(percent)) if len(percent) > 1 else None
                name = recipe if key == "loss" else f"{recipe}, computed in {OTHER_ARITHMETIC[recipe]}"
                rows[name] = {"loss": statistics.fmean(value for value, _ in pairs),
                              "percent": [statistics.fmean(percent), error]}
    return rows


def main(argv=None):
    arguments = parse_arguments(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    device, runs = torch.device(arguments.device), {}
    for seed in arguments.seeds:
        runs[seed] = {}
        for recipe in arguments.recipes:
            runs[seed][recipe] = run(configure(arguments, seed), recipe, device)
            print(f"seed {seed} {recipe}: {runs[seed][recipe]}", flush=True)
        report = {"steps": arguments.steps, "batch_size": arguments.batch_size, "runs": runs, "summary": summary(runs),
                  "learning_rate": arguments.learning_rate, "device": str(device)}
        (arguments.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    for name, row in report["summary"].items():
        mean, error = row["percent"]
        print(f"{name:28} {row['loss']:.5f} {mean:+6.2f} %" + (f" +- {error:.2f}" if error is not None else ""))


if __name__ == "__main__":
    main()
