"""The curves of a run as a picture."""

import math
from pathlib import Path

import numpy as np

from ospnext_ms.reporting.metrics import MAX_STEP
from ospnext_ms.storage.files import atomic_path

LOSS_CURVE, REWARD_CURVE = "loss_curve.png", "reward_curve.png"
SMOOTHED_SHARE = 0.04


def running_mean(values, width):
    """Centred mean over `width` values; windows are cut at the ends. Array [n]."""
    half = width // 2
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    first = np.maximum(np.arange(len(values)) - half, 0)
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def draw_loss(records, folder, note=""):
    """Draws the loss over the steps, thin as measured and thick as running mean, and evaluation losses.

    Returns the picture's path in `folder`, None where no loss was measured.

    Args:
        records: dicts with step and any of loss, eval_loss, eval_loss_ema. note: the title.
    """
    steps, loss = _series(records, "loss")
    if not steps:
        return None
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    axes.plot(steps, loss, linewidth=0.5, color="tab:gray", label="loss")
    width = max(1, int(len(loss) * SMOOTHED_SHARE)) | 1
    axes.plot(steps, running_mean(loss, width), linewidth=1.5, color="tab:blue", label=f"mean of {width} steps")
    fixed = (("eval_loss", "fixed set", "tab:orange"), ("eval_loss_ema", "fixed set, EMA", "tab:red"))
    for name, label, color in fixed:
        steps, values = _series(records, name)
        if steps:
            axes.plot(steps, values, "o-", markersize=4, linewidth=1, color=color, label=label)
    axes.set(xlabel="step", ylabel="loss", title=note, yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return save_figure(figure, Path(folder) / LOSS_CURVE)


def draw_rewards(records, folder, note=""):
    """Draws reward, held-out reward with its standard error, KL divergence and clip fraction.

    Returns the picture's path in `folder`.

    Args:
        records: dicts with step and any of reward_mean, kl, clip_fraction, eval/reward, eval/standard_error.
        note: the title.
    """
    figure = new_figure(9, 7)
    reward, kl, clip = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
    steps, means = _series(records, "reward_mean")
    reward.plot(steps, means, color="tab:gray", linewidth=1, label="training prompts, SDE window")
    steps, means = _series(records, "eval/reward")
    errors = [error if _is_number(error := record.get("eval/standard_error")) and error >= 0 else 0.0
              for record in records if _is_number(record.get("eval/reward"))]
    reward.errorbar(steps, means, errors, fmt="o-", color="tab:red", capsize=3, label="held-out prompts, ODE, EMA")
    reward.set(ylabel="reward", title=note)
    reward.legend()
    for axes, name, label in ((kl, "kl", "KL to the base"), (clip, "clip_fraction", "clip fraction")):
        steps, values = _series(records, name)
        axes.plot(steps, values, linewidth=1)
        axes.set(ylabel=label if steps else f"{label}\n(not measured)")
    clip.set(xlabel="iteration")
    for axes in (reward, kl, clip):
        axes.grid(alpha=0.3)
    return save_figure(figure, Path(folder) / REWARD_CURVE)


def new_figure(width, height):
    """An empty figure of so many inches."""
    # Matplotlib takes a second to import; without pyplot, as no window is wanted.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path):
    """Writes a figure as PNG, whatever the suffix; returns `path`."""
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return path


def _series(records, name):
    found = [(record["step"], record[name]) for record in records if _is_number(record.get(name))]
    return [step for step, _ in found], [value for _, value in found]


def _is_number(value):
    """Whether a value of a record, which somebody may have changed, can be drawn."""
    return isinstance(value, float) and math.isfinite(value) or isinstance(value, int) and abs(value) < MAX_STEP
