r"""How often does the sparse tiny model show what it is asked for when steps reuse earlier ones? (from the root)

    python -m tools.experiments.step_cache_quality --samples 1000 --device cuda --output output/step_cache_quality

The same prompts and noise make a video without the cache and with it for every --thresholds, at most --max-reused steps
in a row; the judge of evaluate_tiny says what they show. Differences are paired, in points, with their 95 % interval.
The ratios are measured on 8 other prompts first and stand in the report.
"""

import json
import time

import numpy as np
import torch

from ospnext_ms.config.generate import StepCacheSection
from ospnext_ms.diffusion.step_reuse import reused_steps
from tools.experiments.options import evaluation_parser, parse_evaluation
from tools.tiny_family import models
from tools.tiny_family.backends import DIT_FILES, torch_clips
from tools.tiny_family.evaluation import accuracy, balanced_prompts, judge_all, noise_of, paired_difference, score
from tools.tiny_family.recipe import load_recipe
from tools.tiny_family.sheet import write_sheet
from tools.torch_reference.step_cache import CachedDiT

PROPERTIES = ("digit", "direction")
CALIBRATION_SAMPLES, CALIBRATION_SEED = 8, 1_000_003
SHOWN = 40


def clips_of(arguments, recipe, prompts, seed, dit):
    """Clips of prompts by a network, or something called like it."""
    noise = np.stack([noise_of(seed, i) for i in range(len(prompts))])
    return torch_clips(recipe, arguments.weights, "sparse", [prompt.text for prompt in prompts], noise, recipe.sampling,
                       arguments.device, dit)


def evaluate(arguments):
    """Yields the report, a dict that JSON can hold, anew after every threshold."""
    recipe = load_recipe(arguments.config)
    steps = recipe.sampling.num_steps
    dit = models.load_dit(recipe.dit("sparse"), arguments.weights / DIT_FILES["sparse"], arguments.device)
    measured = CachedDiT(dit, num_steps=steps)
    clips_of(arguments, recipe, balanced_prompts(CALIBRATION_SAMPLES, CALIBRATION_SEED), CALIBRATION_SEED, measured)
    ratios = [1.0, *(float(np.mean(of_step)) for of_step in measured.ratios[1:])]
    prompts = balanced_prompts(arguments.samples, arguments.seed)
    report = {"samples": arguments.samples, "seed": arguments.seed, "max_reused": arguments.max_reused,
              "first_share": StepCacheSection.first_share, "ratios": ratios, "thresholds": {}}
    scores = {}
    # With a threshold of 0 no step reuses another.
    for threshold in (0.0, *arguments.thresholds):
        reused = reused_steps(ratios, threshold, arguments.max_reused, StepCacheSection.first_share)
        began = time.perf_counter()
        clips = clips_of(arguments, recipe, prompts, arguments.seed, CachedDiT(dit, reused))
        scores[threshold] = score(judge_all(clips), prompts)
        entry = {"steps_reused": sum(reused), "steps": steps, "seconds": round(time.perf_counter() - began, 1)}
        for i, name in enumerate(PROPERTIES):
            entry[name] = accuracy(scores[threshold][i])
            if threshold:
                entry[f"{name}_difference"] = paired_difference(scores[threshold][i], scores[0.0][i])
        report["thresholds"][str(threshold)] = entry
        write_sheet(arguments.output / f"threshold_{threshold}.png", clips[:SHOWN],
                    [prompt.text for prompt in prompts[:SHOWN]])
        _print_row(threshold, entry)
        yield report


def _print_row(threshold, entry):
    words = [f"threshold {threshold}: {entry['steps_reused']} of {entry['steps']} steps reuse another"]
    for name in PROPERTIES:
        words.append(f"{name} {100 * entry[name]['share']:.1f} %")
        if f"{name}_difference" in entry:
            value = entry[f"{name}_difference"]
            words.append(f"({100 * value['difference']:+.2f}, {100 * value['low']:+.2f} .. {100 * value['high']:+.2f})")
    print(", ".join(words), flush=True)


def main(argv=None):
    parser = evaluation_parser(__doc__, "threshold")
    parser.add_argument("--thresholds", nargs="+", type=float, default=[0.03, 0.06, 0.12, 0.24])
    parser.add_argument("--max-reused", type=int, default=StepCacheSection.max_reused)
    arguments = parse_evaluation(parser, argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        for report in evaluate(arguments):
            (arguments.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
