r"""Does the sparse tiny model show as often what it is asked for when it runs in 8 bits? (from the repository's root)

    python -m tools.experiments.eight_bit_quality --samples 1000 --device cuda --output output/eight_bit_quality

The same prompts and noise make a video in fp32, in bf16 and in every 8-bit mode (tools.torch_reference.gpu), and the
judge of evaluate_tiny says what they show: differences to bf16 are paired, in points, with their 95 % interval. Beside
them stands the relative error of the latents after 50 steps against those of bf16, and of bf16 against fp32.
"""

import json
import time
from dataclasses import replace

import numpy as np
import torch

from tools.experiments.options import evaluation_parser, parse_evaluation
from tools.tiny_family.backends import DIT_FILES, torch_clips
from tools.tiny_family.evaluation import accuracy, balanced_prompts, judge_all, noise_of, paired_difference, score
from tools.tiny_family.recipe import load_recipe
from tools.tiny_family.sheet import write_sheet
from tools.torch_reference import flow
from tools.torch_reference.gpu import fused
from tools.torch_reference.gpu.attention_backends import attention_backend, fa3_module
from tools.torch_reference.gpu.attention_float8 import HIF8_RECIPE, AttentionRecipe
from tools.torch_reference.gpu.packed import PackedDiT
from tools.torch_reference.gpu.quantisation import quantise
from tools.torch_reference.gpu.timing import relative_error
from tools.torch_reference.loading import load

PROPERTIES = ("digit", "direction")
ERROR_STEPS, ERROR_SAMPLES = 50, 64
SHOWN = 40


def modes():
    """{name: arguments of quantise}, None for the model as it is; "first steps" is no argument of quantise."""
    ours = AttentionRecipe()
    return {
        "fp32": None, "bf16": None,
        "8-bit linears": {"scaling": "bound"},
        "8-bit linears, current scaling": {"scaling": "tensor"},
        "8-bit attention": {"attention": ours},
        "8-bit attention, k and v as they are": {"attention": replace(ours, centre_keys=False, centre_values=False)},
        "8-bit linears and attention": {"scaling": "bound", "attention": ours},
        "8-bit linears and attention, 1 block at either end in bf16": {
            "scaling": "bound", "attention": ours, "keep_bf16": 1},
        "8-bit linears and attention, first 2 steps in bf16": {
            "scaling": "bound", "attention": ours, "first steps": 2},
        "HiF8 linears, emulated": {"scaling": "hif8"},
        "HiF8 linears and attention, emulated": {"scaling": "hif8", "attention": HIF8_RECIPE},
    }


class FirstSteps:
    """One network while t is at least `until`, another after that."""

    def __init__(self, first, then, until):
        self.first, self.then, self.until = first, then, until

    def __call__(self, x, t, text):
        return (self.first if t[0] >= self.until else self.then)(x, t, text)


def build(recipe, weights, device, mode, sampling):
    """The sparse tiny network in one of `modes`."""
    kernels = "triton" if torch.device(device).type == "cuda" else "eager"
    dtype = torch.float32 if mode == "fp32" else torch.bfloat16
    model = PackedDiT(recipe.dit("sparse"), dtype=dtype, kernels=fused.kernels("eager" if mode == "fp32" else kernels))
    load(model, weights / DIT_FILES["sparse"]).to(device).eval().requires_grad_(False)
    arguments = dict(modes()[mode] or {})
    first_steps = arguments.pop("first steps", 0)
    if arguments:
        if "attention" in arguments and fa3_module() and torch.device(device).type == "cuda":
            model.attention = attention_backend("fa3")
        quantise(model, kernels, **arguments)
    if first_steps:
        sigma = flow.inference_sigmas(sampling.num_steps, sampling.shift)[first_steps - 1].item()
        return FirstSteps(build(recipe, weights, device, "bf16", sampling), model, 1000 * sigma - 1e-3)
    return model


def latents_of(recipe, arguments, mode):
    """Latents after ERROR_STEPS steps with guidance; texts and noise are random, the same for every mode."""
    sampling = replace(recipe.sampling, num_steps=ERROR_STEPS)
    dit = build(recipe, arguments.weights, arguments.device, mode, sampling)
    generator = torch.Generator().manual_seed(arguments.seed)
    config = recipe.dit("sparse")
    text = torch.randn(ERROR_SAMPLES, config.text_len, config.text_dim, generator=generator).to(arguments.device)
    noise = torch.from_numpy(np.stack([noise_of(arguments.seed, i) for i in range(ERROR_SAMPLES)])).to(arguments.device)
    with torch.inference_mode():
        return flow.sample(dit, noise, text, torch.zeros_like(text), ERROR_STEPS, sampling.shift, sampling.guidance)


def evaluate(arguments):
    """Yields the report, a dict that JSON can hold, anew after every mode."""
    recipe = load_recipe(arguments.config)
    prompts = balanced_prompts(arguments.samples, arguments.seed)
    texts = [prompt.text for prompt in prompts]
    noise = np.stack([noise_of(arguments.seed, i) for i in range(arguments.samples)])
    report = {"samples": arguments.samples, "seed": arguments.seed, "modes": {}}
    scores, latents = {}, {}
    for mode in arguments.modes:
        began = time.perf_counter()
        latents[mode] = latents_of(recipe, arguments, mode)
        dit = build(recipe, arguments.weights, arguments.device, mode, recipe.sampling)
        clips = torch_clips(recipe, arguments.weights, "sparse", texts, noise, recipe.sampling, arguments.device, dit)
        scores[mode] = score(judge_all(clips), prompts)
        entry = {name: accuracy(right) for name, right in zip(PROPERTIES, scores[mode], strict=True)}
        against = "fp32" if mode == "bf16" else "bf16"
        if mode != against and against in scores:
            entry["against"], entry["latent_error"] = against, relative_error(latents[mode], latents[against])
            entry["difference"] = {name: paired_difference(scores[mode][i], scores[against][i])
                                   for i, name in enumerate(PROPERTIES)}
        entry["seconds"] = round(time.perf_counter() - began, 1)
        report["modes"][mode] = entry
        write_sheet(arguments.output / f"{mode.replace(',', '').replace(' ', '_')}.png", clips[:SHOWN], texts[:SHOWN])
        _print_mode(mode, entry)
        yield report


def _print_mode(mode, entry):
    shares = ", ".join(f"{name} {100 * entry[name]['share']:.1f} %" for name in PROPERTIES)
    print(f"{mode}: {shares}, {entry['seconds']} s")
    if "difference" in entry:
        differences = ", ".join(
            f"{name} {100 * value['difference']:+.2f} ({100 * value['low']:+.2f} .. {100 * value['high']:+.2f})"
            for name, value in entry["difference"].items())
        print(f"    against {entry['against']}: {differences} points, latents after {ERROR_STEPS} steps "
              f"{entry['latent_error']:.2e}", flush=True)


def parse_arguments(argv=None):
    """The command line."""
    parser = evaluation_parser(__doc__, "mode")
    parser.add_argument("--modes", nargs="+", choices=modes(), default=list(modes()), metavar="MODE",
                        help="of: " + "; ".join(modes()))
    return parse_evaluation(parser, argv)


def main(argv=None):
    arguments = parse_arguments(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for report in evaluate(arguments):
        (arguments.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
