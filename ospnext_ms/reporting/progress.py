"""Progress of a run: the bars of `generate` and `prepare-data`, the lines of training."""

import math

from tqdm import tqdm


def progress_bar(what, unit, total, **options):
    """A bar on stderr that tells how much of `total` units is done; `options` are tqdm's."""
    return tqdm(desc=what, unit=unit, total=total, dynamic_ncols=True, **options)


def training_line(step, total_steps, figures, seconds_left):
    """Line of a training step from its figures."""
    words = [f"step {step}/{total_steps}", f"loss {figures['loss']:.5f}", f"norm {figures['gradient_norm']:.4f}",
             f"lr {figures['learning_rate']:.3g}", f"{figures['step_seconds']:.3f} s/step",
             f"{figures['samples_per_second']:.3g} samples/s"]
    if "mfu" in figures:
        words.append(f"MFU {100 * figures['mfu']:.1f}%")
    return "  ".join(words + _left(seconds_left))


def iteration_line(iteration, total_iterations, figures, seconds_left):
    """Line of an iteration of post-training from its figures."""
    words = [f"iteration {iteration}/{total_iterations}", f"window {figures['window_start']}"]
    words += [f"{label} {figures[name]:.4g}" for label, name in (
        ("reward", "reward_mean"), ("spread", "reward_std"), ("kl", "kl"), ("clipped", "clip_fraction"),
        ("norm", "gradient_norm"), ("zero spread", "zero_spread_share")) if figures.get(name) is not None]
    words += [f"{figures['iteration_seconds']:.1f} s", *_left(seconds_left)]
    failed = sum(count for name, count in figures.items() if name.startswith("failed/"))
    return "  ".join(words + ([f"WITHOUT A SCORE {failed}"] if failed else []))


def format_seconds(seconds):
    """h:mm:ss, rounded up."""
    seconds = math.ceil(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _left(seconds):
    return [] if seconds is None else [f"left {format_seconds(seconds)}"]
