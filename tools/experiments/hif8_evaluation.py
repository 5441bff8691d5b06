r"""Do models trained in 8 bits show what they are asked for as often as those trained in fp32? (from the repository's
root, after tools.experiments.hif8_experiment)

    python -m tools.experiments.hif8_evaluation --experiment output/hif8_experiment --samples 1000 --device cuda \
        --output output/hif8_evaluation

For every seed whose two runs are there, the same prompts and noise make a video with the model trained in fp32, run in
fp32, and one with the model trained in HiF8, run in HiF8; both by tools.torch_reference, which knows nothing of
MindSpore. The judge of evaluate_tiny says what they show. Differences are paired, in points, with their
95 % interval, for each seed and for all together.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from tools.experiments.options import evaluation_parser, parse_evaluation
from tools.tiny_family.backends import torch_clips
from tools.tiny_family.evaluation import accuracy, balanced_prompts, judge_all, noise_of, paired_difference, score
from tools.tiny_family.recipe import load_recipe
from tools.tiny_family.sheet import write_sheet

PROPERTIES = ("digit", "direction")
SHOWN = 40


def parse_arguments(argv=None):
    """The command line."""
    parser = evaluation_parser(__doc__, "model")
    parser.add_argument("--experiment", type=Path, required=True, help="folder of tools.experiments.hif8_experiment")
    return parse_evaluation(parser, argv)


def load_dit(recipe, path, quantised, device):
    """The sparse transformer of torch_reference with weights of the experiment, in fp32 or in HiF8."""
    from tools.torch_reference import hif8
    from tools.torch_reference.loading import load

    changes = {"quant": "hif8", "quant_attention": "hif8"} if quantised else {}
    model = hif8.build(replace(recipe.dit_sparse, **changes))
    return load(model, path).to(device).eval().requires_grad_(False)


def seeds_of(experiment):
    """Seeds whose fp32 and HiF8 weights are there. Raises FileNotFoundError where there is none."""
    weights = experiment / "weights"
    seeds = sorted(path.stem.removeprefix("hif8_") for path in weights.glob("hif8_?*.safetensors")
                   if (weights / path.name.replace("hif8_", "fp32_")).is_file())
    if not seeds:
        raise FileNotFoundError(f"no pairs fp32_SEED.safetensors and hif8_SEED.safetensors in {weights}")
    return seeds


def evaluate(arguments):
    """Yields the report, a dict that JSON can hold, anew after every pair."""
    recipe = load_recipe(arguments.config)
    prompts = balanced_prompts(arguments.samples, arguments.seed)
    texts = [prompt.text for prompt in prompts]
    noise = np.stack([noise_of(arguments.seed, i) for i in range(arguments.samples)])
    report = {"samples": arguments.samples, "seed": arguments.seed, "pairs": {}, "together": {}}
    scores = {"fp32": [], "hif8": []}
    for seed in seeds_of(arguments.experiment):
        entry = {}
        for name in scores:
            began = time.perf_counter()
            dit = load_dit(recipe, arguments.experiment / "weights" / f"{name}_{seed}.safetensors", name == "hif8",
                           arguments.device)
            clips = torch_clips(recipe, arguments.weights, "sparse", texts, noise, recipe.sampling, arguments.device,
                                dit)
            scores[name].append(score(judge_all(clips), prompts))
            entry[name] = {key: accuracy(right) for key, right in zip(PROPERTIES, scores[name][-1], strict=True)}
            entry[name]["seconds"] = round(time.perf_counter() - began, 1)
            write_sheet(arguments.output / f"{name}_{seed}.png", clips[:SHOWN], texts[:SHOWN])
        entry["hif8_minus_fp32"] = {key: paired_difference(scores["hif8"][-1][i], scores["fp32"][-1][i])
                                    for i, key in enumerate(PROPERTIES)}
        report["pairs"][seed] = entry
        for i, key in enumerate(PROPERTIES):
            hif8, fp32 = (np.concatenate([pair[i] for pair in scores[name]]) for name in ("hif8", "fp32"))
            report["together"][key] = paired_difference(hif8, fp32)
        yield report


def print_table(report):
    """The report for a reader: percent and points, with 95 % intervals."""
    for seed, entry in report["pairs"].items():
        for name in ("fp32", "hif8"):
            for key in PROPERTIES:
                value = entry[name][key]
                print(f"seed {seed} {name} {key:10}{100 * value['share']:7.1f} %   {100 * value['low']:.1f} .. "
                      f"{100 * value['high']:.1f}")
        print_differences(f"seed {seed} hif8 - fp32", entry["hif8_minus_fp32"])
    print_differences("all seeds hif8 - fp32", report["together"])


def print_differences(title, differences):
    """One line a property."""
    for key, value in differences.items():
        print(f"{title} {key:10}{100 * value['difference']:+7.2f} points   {100 * value['low']:+.2f} .. "
              f"{100 * value['high']:+.2f} ({value['count']} pairs)")


def main(argv=None):
    arguments = parse_arguments(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for report in evaluate(arguments):
        (arguments.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print_table(report)


if __name__ == "__main__":
    main()
