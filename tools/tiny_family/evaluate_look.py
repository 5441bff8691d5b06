r"""What an adapter of a new look brings: loss on held-out clips and judged videos without and with it.

    python -m tools.tiny_family.evaluate_look --config yaml_configs/train/tiny_lora.yaml \
        --adapter output/train_tiny_lora/adapter_ema --look shaded --samples 80 --output output/look

The loss is that of the configuration's eval_dataset, clip by clip; videos are made of the same prompts from the same
noise. Intervals are of 95 %: Wilson's for shares, for differences that of the mean over pairs (clips, videos).
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from mindspore import Tensor

from ospnext_ms.build import assemble_dit
from ospnext_ms.config.reader import load_config
from ospnext_ms.config.train import TrainConfig
from ospnext_ms.runtime import start
from ospnext_ms.storage.adapters import combine
from ospnext_ms.storage.open_weights import open_weights
from ospnext_ms.storage.peft_format import read_stored_adapter
from ospnext_ms.training.inputs import FixedInputs
from ospnext_ms.training.loss import VelocityLoss
from tools.tiny_family import backends, looks
from tools.tiny_family.evaluation import accuracy, balanced_prompts, noise_of, paired_difference
from tools.tiny_family.recipe import FOLDER, load_recipe
from tools.tiny_family.sheet import write_sheet

SHOWN = 6


def losses(config, adapter=None):
    """Loss of every clip of the eval_dataset, float64 [clips], of the frozen network or with an adapter beside it."""
    runtime, dit, weights = start(config.context), config.model.dit, config.load_checkpoint
    beside = None if adapter is None else combine([(read_stored_adapter(adapter), 1.0)])[0]
    net = assemble_dit(dit, runtime, tensors=open_weights(weights), origin=weights, beside=beside,
                       residual_dtype=dit.residual_dtype).net
    loss, inputs = runtime.compile(VelocityLoss(net)), FixedInputs(config.eval_dataset, config.flow, dit)
    return np.array([float(loss(*map(Tensor, inputs(clip)))) for clip in range(len(inputs))])


def compare_losses(before, after):
    """{"before", "after": mean with its interval; "difference": paired}."""
    zeros = np.zeros(len(before))
    return {"before": paired_difference(before, zeros), "after": paired_difference(after, zeros),
            "difference": paired_difference(after, before)}


def judged(clips, prompts, look):
    """{property: boolean array}: the digit asked for, its direction, the look, and all three."""
    verdicts = [looks.judge_clip(clip, look) for clip in clips]
    right = {"digit": [verdict.digit == prompt.digit for (verdict, _), prompt in zip(verdicts, prompts, strict=True)],
             "direction": [verdict.direction == prompt.direction
                           for (verdict, _), prompt in zip(verdicts, prompts, strict=True)],
             "look": [has_look for _, has_look in verdicts]}
    right = {name: np.array(values) for name, values in right.items()}
    return right | {"all": np.logical_and.reduce(list(right.values()))}


def compare_shares(before, after):
    """{property: {"before", "after": share with its interval; "difference": paired}}."""
    return {name: {"before": accuracy(before[name]), "after": accuracy(after[name]),
                   "difference": paired_difference(after[name], before[name])} for name in before}


def evaluate(config, adapter, look, samples, seed, output):
    """The report, a dict that JSON can hold; contact sheets before.png and after.png in the folder `output`."""
    began = time.perf_counter()
    report = {"adapter": str(adapter), "look": look, "clips": config.eval_dataset.clips, "samples": samples,
              "seed": seed, "loss": compare_losses(losses(config), losses(config, adapter))}
    recipe, prompts = load_recipe(), balanced_prompts(samples, seed)
    noise, found = np.stack([noise_of(seed, i) for i in range(samples)]), {}
    for name, used in (("before", None), ("after", adapter)):
        clips = backends.mindspore_clips(recipe, FOLDER / "weights", "sparse", [prompt.text for prompt in prompts],
                                         noise, recipe.sampling, adapter=used)
        found[name] = judged(clips, prompts, look)
        write_sheet(output / f"{name}.png", clips[:SHOWN], [prompt.text for prompt in prompts[:SHOWN]])
    return report | {"judged": compare_shares(found["before"], found["after"]),
                     "seconds": round(time.perf_counter() - began)}


def print_report(report):
    """The figures for a reader."""
    rows = {"loss": report["loss"], **{f"{name} right": row for name, row in report["judged"].items()}}
    for name, row in rows.items():
        before, after = (row[when].get("share", row[when].get("difference")) for when in ("before", "after"))
        change = row["difference"]
        print(f"{name:16} {before:.4f} ({row['before']['low']:.4f} to {row['before']['high']:.4f})  ->  {after:.4f} "
              f"({row['after']['low']:.4f} to {row['after']['high']:.4f}), change {change['difference']:+.4f} "
              f"({change['low']:+.4f} to {change['high']:+.4f})")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="of the training, with its eval_dataset")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--adapter", type=Path, required=True, help="folder in PEFT's format")
    parser.add_argument("--look", choices=looks.LOOKS[1:], default="shaded", help="what the clips have been drawn in")
    parser.add_argument("--samples", type=int, default=80, help="videos, the first 40 ask for every digit each way")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--output", type=Path, required=True, help="folder for report.json and contact sheets")
    arguments = parser.parse_args(argv)
    if arguments.samples < 2:
        parser.error(f"--samples is {arguments.samples}; at least 2 are needed")
    arguments.output.mkdir(parents=True, exist_ok=True)
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    if config.eval_dataset is None or config.load_checkpoint is None:
        parser.error("the configuration needs an eval_dataset and a load_checkpoint")
    report = evaluate(config, arguments.adapter, arguments.look, arguments.samples, arguments.seed, arguments.output)
    (arguments.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print_report(report)


if __name__ == "__main__":
    main()
