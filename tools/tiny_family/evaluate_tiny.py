r"""Does the tiny family show what it is asked for? (from the repository's root)

    python -m tools.tiny_family.evaluate_tiny --backend torch --model both --samples 1000 --device cuda \
        --output output/evaluation
    python -m tools.tiny_family.evaluate_tiny --backend mindspore --model sparse --samples 120 --compare \
        --output output/evaluation

Prompts ask for every digit in every direction; a judge that knows no prompt (tools/tiny_family/judge.py) says what the
videos show. `--model both` makes a pair of videos from the same prompt and noise and gives the difference sparse - full
with its 95 % interval. `--compare` makes the same videos with the other framework and says how often the verdicts
agree. The judge's own limits come first, unless `--no-judge` leaves them out: its accuracy on held-out scans and on
held-out clips that passed through the VAE.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from tools.tiny_family import backends, digits, judge
from tools.tiny_family.evaluation import (
    accuracy,
    agreement,
    balanced_prompts,
    judge_all,
    noise_of,
    paired_difference,
    score,
)
from tools.tiny_family.recipe import FOLDER, load_recipe
from tools.tiny_family.sheet import write_sheet

CEILING_SEED = 2_000_003
CEILING_CLIPS = 200


def parse_arguments(argv=None):
    """The command line; values left out come from tools/tiny_family/train.yaml."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("torch", "mindspore"), required=True)
    parser.add_argument("--model", choices=("sparse", "full", "both"), default="sparse")
    parser.add_argument("--samples", type=int, default=120, metavar="N")
    parser.add_argument("--compare", action="store_true", help="make the same videos with the other framework too")
    parser.add_argument("--no-judge", action="store_true", help="leave out the judge's own accuracy")
    parser.add_argument("--weights", type=Path, default=FOLDER / "weights", help="folder with weights and tokenizer")
    parser.add_argument("--config", type=Path, default=FOLDER / "train.yaml")
    parser.add_argument("--device", default="cpu", help="of PyTorch: cpu or cuda")
    parser.add_argument("--steps", type=int, help="sampling steps")
    parser.add_argument("--shift", type=float)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--output", type=Path, help="folder for the JSON report and contact sheets")
    arguments = parser.parse_args(argv)
    if arguments.samples < 2:
        parser.error(f"--samples is {arguments.samples}; at least 2 are needed")
    return arguments


def sampling_of(recipe, arguments):
    """The recipe's sampling with the command line's changes."""
    changes = {"num_steps": arguments.steps, "shift": arguments.shift, "guidance": arguments.guidance}
    return dataclasses.replace(recipe.sampling, **{k: v for k, v in changes.items() if v is not None})


def ceiling(recipe, weights, device, count=CEILING_CLIPS):
    """How well the judge does where the truth is known: {name: accuracy}."""
    from tools.tiny_family.models import load_vae, reconstruct

    clips, _, labels = digits.make_clips(CEILING_SEED, 0, count, "held_out")
    single = [i for i, label in enumerate(labels) if label["second_digit"] < 0]
    copies = reconstruct(load_vae(recipe.vae_model, weights / "vae.safetensors", device), clips[single], device, 8)
    right = [verdict.digit == labels[i]["digit"] for i, verdict in zip(single, judge_all(copies), strict=True)]
    return {"held_out_scans": round(judge.scan_accuracy("held_out"), 4), "held_out_clips_through_vae": accuracy(right)}


def make_clips(arguments, recipe, backend, model, prompts, noise):
    """Clips of one model by one backend, with the seconds they took."""
    sampling = sampling_of(recipe, arguments)
    texts = [prompt.text for prompt in prompts]
    began = time.perf_counter()
    if backend == "torch":
        clips = backends.torch_clips(recipe, arguments.weights, model, texts, noise, sampling, arguments.device)
    else:
        clips = backends.mindspore_clips(recipe, arguments.weights, model, texts, noise, sampling)
    return clips, time.perf_counter() - began


def evaluate(arguments):
    """Runs what the command line asks for and returns the report, a dict that JSON can hold."""
    recipe = load_recipe(arguments.config)
    prompts = balanced_prompts(arguments.samples, arguments.seed)
    noise = np.stack([noise_of(arguments.seed, i) for i in range(arguments.samples)])
    report = {"backend": arguments.backend, "samples": arguments.samples, "seed": arguments.seed,
              "sampling": dataclasses.asdict(sampling_of(recipe, arguments)), "models": {}}
    if not arguments.no_judge:
        report["judge"] = ceiling(recipe, arguments.weights, arguments.device)
    scores = {}
    for model in ("full", "sparse") if arguments.model == "both" else (arguments.model,):
        clips, seconds = make_clips(arguments, recipe, arguments.backend, model, prompts, noise)
        verdicts = judge_all(clips)
        scores[model] = dict(zip(("digit", "direction"), score(verdicts, prompts), strict=True))
        entry = {name: accuracy(right) for name, right in scores[model].items()}
        entry["seconds_per_video"] = round(seconds / len(prompts), 3)
        if arguments.compare:
            other = "mindspore" if arguments.backend == "torch" else "torch"
            others, _ = make_clips(arguments, recipe, other, model, prompts, noise)
            entry[f"verdicts_equal_to_{other}"] = agreement(verdicts, judge_all(others))
            entry["mean_pixel_difference"] = round(float(np.abs(clips.astype(np.int16) - others).mean()), 4)
        report["models"][model] = entry
        if arguments.output:
            arguments.output.mkdir(parents=True, exist_ok=True)
            shown = min(40, len(prompts))
            write_sheet(arguments.output / f"{arguments.backend}_{model}.png", clips[:shown],
                        [prompt.text for prompt in prompts[:shown]])
    if arguments.model == "both":
        report["sparse_minus_full"] = {name: paired_difference(scores["sparse"][name], scores["full"][name])
                                       for name in ("digit", "direction")}
    return report


def print_table(report):
    """The report for a reader: percent with 95 % intervals."""
    print(f"{'':28}{'share':>8}   95 % interval")
    rows = []
    if "judge" in report:
        print(f"{'judge, held-out scans':28}{100 * report['judge']['held_out_scans']:7.1f}%")
        rows.append(("judge, held-out through VAE", report["judge"]["held_out_clips_through_vae"]))
    for model, entry in report["models"].items():
        rows += [(f"{model}, {name.replace('_', ' ')}", value) for name, value in entry.items()
                 if isinstance(value, dict)]
    for name, value in rows:
        print(f"{name:28}{100 * value['share']:7.1f}%   {100 * value['low']:.1f} .. {100 * value['high']:.1f}")
    for name, value in report.get("sparse_minus_full", {}).items():
        print(f"{'sparse - full, ' + name:28}{100 * value['difference']:+7.1f}    "
              f"{100 * value['low']:+.1f} .. {100 * value['high']:+.1f}")


def main(argv=None):
    arguments = parse_arguments(argv)
    report = evaluate(arguments)
    print_table(report)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        path = arguments.output / f"{arguments.backend}_{arguments.model}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
