"""The loss of a run as a picture."""

import numpy as np

from ospnext_ms.storage.files import atomic_path

SMOOTHED_SHARE = 0.04


def running_mean(values, width):
    """Centred mean over `width` values; windows are cut at the ends. Array [n]."""
    half = width // 2
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    first = np.maximum(np.arange(len(values)) - half, 0)
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def plot_loss(records, path, note=""):
    """Draws the loss over the steps, thin as measured and thick as running mean, and evaluation losses; returns `path`.

    `records`: dicts with step and any of loss, eval_loss, eval_loss_ema.
    """
    # Matplotlib takes a second to import; without pyplot, as no window is wanted.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, loss = _series(records, "loss")
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
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return path


def _series(records, name):
    found = [(record["step"], record[name]) for record in records if name in record]
    return [step for step, _ in found], [value for _, value in found]
