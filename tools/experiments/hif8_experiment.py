r"""Is 8-bit training as good as fp32? Fine-tunes the full tiny model to the sparse one in both. (from the repository's
root, after the data of yaml_configs/train/tiny.yaml's head has been prepared)

    python -m tools.experiments.hif8_experiment run    --output output/hif8_experiment --data output/digits_cache \
        --held-out output/digits_held_out_cache
    python -m tools.experiments.hif8_experiment report --output output/hif8_experiment

`run` trains every recipe with every seed, each by `python -m ospnext_ms train` in a process of its own: same data,
order, noise and noise levels for equal seeds. What is complete is kept and what was stopped goes on, so the same
command resumes. `report` (which `run` ends with) writes report.json, curves.png and the table, and the averaged weights
of every run to weights/RECIPE_SEED.safetensors (fp16) for tools.experiments.hif8_evaluation.

Recipes: `fp32`; `hif8` (scales 15 and 224); `hif8_centred`, which gives attention k less its mean; `hif8_32768`, the
ablation, which scales everything to the largest HiF8 number, where mantissas have one bit. The figure of a run is the
loss of its averaged weights on the fixed clips, noise and noise levels of the configuration's eval_dataset.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from ospnext_ms.reporting.metrics import read_metrics

CONFIGS = Path("yaml_configs/train")
RECIPES = {
    "fp32": ("tiny.yaml", {}),
    "hif8": ("tiny_hif8.yaml", {}),
    "hif8_centred": ("tiny_hif8.yaml", {"model.dit.quant_config.centre_keys": "true"}),
    "hif8_32768": ("tiny_hif8.yaml", {"model.dit.quant_config.scale_max_forward": 32768.0,
                                      "model.dit.quant_config.scale_max_backward": 32768.0}),
}
FIGURE = "eval_loss_ema"


def parse_arguments(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what is not trained yet, then report")
    report = commands.add_parser("report", help="figures and curves of what there is")
    for command in (run, report):
        command.add_argument("--output", type=Path, required=True, help="folder of runs, report.json and curves.png")
    run.add_argument("--data", type=Path, required=True, help="folder of prepare-data to train on")
    run.add_argument("--held-out", type=Path, required=True, help="folder of prepare-data to measure on")
    run.add_argument("--steps", type=int, default=500)
    run.add_argument("--batch-size", type=int, default=4)
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    run.add_argument("--ablation-seeds", type=int, nargs="*", default=[0], help="seeds of hif8_32768")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                     help="change of the configuration for every run, as of `ospnext_ms train`")
    return parser.parse_args(argv)


def planned(arguments):
    """[(recipe, seed)] in the order in which they are trained: pairs first, so that a comparison is there early."""
    pairs = [(recipe, seed) for seed in arguments.seeds for recipe in ("fp32", "hif8", "hif8_centred")]
    return pairs + [("hif8_32768", seed) for seed in arguments.ablation_seeds]


def folder_of(output, recipe, seed):
    """Folder of one run."""
    return output / f"{recipe}_{seed}"


def command_of(arguments, recipe, seed):
    """The command line that trains one run."""
    file, changes = RECIPES[recipe]
    values = {
        "seed": seed, "output_dir": folder_of(arguments.output, recipe, seed), "runner_config.steps": arguments.steps,
        "runner_config.batch_size": arguments.batch_size, "train_dataset.path": arguments.data,
        "eval_dataset.path": arguments.held_out, "eval_dataset.every": max(1, arguments.steps // 4),
        "callbacks.keep_checkpoint_max": 1, "callbacks.trackers": "[]", "callbacks.per_print_times": 50,
        **changes,
    }
    sets = [f"{key}={value}" for key, value in values.items()] + arguments.overrides
    return [sys.executable, "-m", "ospnext_ms", "train", "--config", str(CONFIGS / file),
            *(part for text in sets for part in ("--set", text))]


def train(arguments):
    """Trains what is planned and not there. A run whose loss leaves the finite numbers is a result and not an error."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    for recipe, seed in planned(arguments):
        folder = folder_of(arguments.output, recipe, seed)
        if is_complete(folder, arguments.steps):
            print(f"{folder}: complete", flush=True)
            continue
        print(f"{folder}: training", flush=True)
        done = subprocess.run(command_of(arguments, recipe, seed), stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.stderr.write(done.stderr)
            if "is not finite" not in done.stderr:
                raise RuntimeError(f"training {folder} failed with exit code {done.returncode}")
            (folder / "diverged.txt").write_text(done.stderr.strip().splitlines()[-1] + "\n")


def is_complete(folder, steps):
    """True where a run has its last measurement, or left the finite numbers."""
    records = read_metrics(folder)
    return (folder / "diverged.txt").exists() or any(FIGURE in r and r["step"] == steps for r in records)


def summary(folder):
    """Figures of one run: {"steps", "before", "after", "loss_last_100", "seconds_per_step", "diverged"}.

    `after` is None where the run diverged or has not come to its last step.
    """
    records = read_metrics(folder)
    measured = [record for record in records if FIGURE in record]
    losses = [record["loss"] for record in records if "loss" in record]
    seconds = [record["step_seconds"] for record in records if "step_seconds" in record]
    diverged = (folder / "diverged.txt").exists()
    if not measured:
        raise ValueError(f"{folder} has no measurement yet")
    planned_steps = json.loads((folder / "configuration.json").read_text())["runner_config"]["steps"]
    is_done = not diverged and measured[-1]["step"] == planned_steps
    return {"steps": measured[-1]["step"], "before": measured[0][FIGURE],
            "after": measured[-1][FIGURE] if is_done else None, "loss_last_100": statistics.fmean(losses[-100:]),
            "seconds_per_step": statistics.median(seconds), "diverged": diverged}


def report(output):
    """report.json of all runs under `output`: each run's figures and, per recipe, the differences from fp32 in percent.

    Raises:
        ValueError: there is no run, or one without a measurement.
    """
    runs = {}
    for folder in sorted(output.iterdir()):
        recipe, _, seed = folder.name.rpartition("_")
        if folder.is_dir() and recipe in RECIPES and seed.isdigit():
            runs.setdefault(recipe, {})[seed] = summary(folder)
    if not runs:
        raise ValueError(f"no runs in {output}")
    differences = {recipe: {seed: percent(run["after"], runs["fp32"][seed]["after"]) for seed, run in seeds.items()
                            if run["after"] and runs.get("fp32", {}).get(seed, {}).get("after")}
                   for recipe, seeds in runs.items() if recipe != "fp32"}
    means = {recipe: percent(statistics.fmean(runs[recipe][seed]["after"] for seed in seeds),
                             statistics.fmean(runs["fp32"][seed]["after"] for seed in seeds))
             for recipe, seeds in differences.items() if seeds}
    result = {"figure": FIGURE, "runs": runs, "percent_above_fp32": differences, "percent_above_fp32_of_means": means}
    (output / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(output, runs)
    for recipe, seeds in runs.items():
        for seed, run in seeds.items():
            if run["after"]:
                export(output, folder_of(output, recipe, seed), run["steps"])
    return result


def export(output, folder, steps):
    """Writes the averaged weights of a finished run, where its last checkpoint is there."""
    from ospnext_ms.storage.open_weights import read_headers
    from ospnext_ms.storage.weights import save_weights

    trained = folder / "checkpoints" / f"step_{steps:08d}" / "ema"
    if trained.is_dir():
        (output / "weights").mkdir(exist_ok=True)
        arrays = {name: tensor.numpy() for name, tensor in read_headers(trained).items()}
        save_weights(arrays, output / "weights" / f"{folder.name}.safetensors", "float16", overwrite=True)


def percent(value, baseline):
    """How many percent `value` lies above `baseline`."""
    return 100 * (value / baseline - 1)


def plot(output, runs):
    """curves.png: running mean of the training loss, and the loss on the fixed set, of every run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ospnext_ms.reporting.curves import running_mean

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    colors = dict(zip(RECIPES, ("tab:blue", "tab:orange", "tab:green", "tab:red"), strict=True))
    for recipe, seeds in runs.items():
        for i, seed in enumerate(seeds):
            records = read_metrics(folder_of(output, recipe, seed))
            style = {"color": colors[recipe], "linewidth": 1, "label": recipe if i == 0 else None}
            loss = [(record["step"], record["loss"]) for record in records if "loss" in record]
            left.plot([step for step, _ in loss], running_mean([value for _, value in loss], 41), **style)
            fixed = [(record["step"], record[FIGURE]) for record in records if FIGURE in record]
            right.plot(*zip(*fixed, strict=True), "o-", markersize=3, **style)
    left.set(xlabel="step", ylabel="training loss, mean of 41 steps")
    right.set(xlabel="step", ylabel="loss on the fixed set, averaged weights", yscale="log")
    right.legend()
    figure.savefig(output / "curves.png", dpi=110)


def print_table(result):
    """The report for a reader."""
    print(f"{'run':16}{'steps':>6}{'before':>10}{'after':>10}{'above fp32':>12}{'s/step':>8}")
    for recipe, seeds in result["runs"].items():
        for seed, run in seeds.items():
            after = "diverged" if run["diverged"] else f"{run['after']:.5f}" if run["after"] else "unfinished"
            above = result["percent_above_fp32"].get(recipe, {}).get(seed)
            print(f"{recipe + ' ' + seed:16}{run['steps']:6}{run['before']:10.5f}{after:>10}"
                  f"{'' if above is None else f'{above:+.2f} %':>12}{run['seconds_per_step']:8.2f}")
    for recipe, above in result["percent_above_fp32_of_means"].items():
        print(f"mean of {recipe}: {above:+.2f} % above fp32")


def main(argv=None):
    arguments = parse_arguments(argv)
    if arguments.command == "run":
        train(arguments)
    print_table(report(arguments.output))


if __name__ == "__main__":
    main()
