"""Curves of a post-training run as a picture."""

from ospnext_ms.storage.files import atomic_path


def plot_run(records, path):
    """Draws reward, held-out reward with its standard error, KL divergence and clip fraction; returns `path`.

    `records`: dicts with step and any of reward_mean, reward_std, kl, clip_fraction, eval/reward, eval/standard_error.
    """
    # Matplotlib takes a second to import; without pyplot, as no window is wanted.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7))
    FigureCanvasAgg(figure)
    reward, kl, clip = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
    steps, means = _series(records, "reward_mean")
    reward.plot(steps, means, color="tab:gray", linewidth=1, label="training prompts, SDE window")
    steps, means = _series(records, "eval/reward")
    errors = _series(records, "eval/standard_error")[1]
    reward.errorbar(steps, means, errors, fmt="o-", color="tab:red", capsize=3, label="held-out prompts, ODE, EMA")
    reward.set(ylabel="reward")
    reward.legend()
    for axes, name, label in ((kl, "kl", "KL to the base"), (clip, "clip_fraction", "clip fraction")):
        steps, values = _series(records, name)
        axes.plot(steps, values, linewidth=1)
        axes.set(ylabel=label if steps else f"{label}\n(not measured)")
    clip.set(xlabel="iteration")
    for axes in (reward, kl, clip):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return path


def _series(records, name):
    found = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]
