"""What a post-training run tells: figures of every iteration, progress lines, plots."""

import numpy as np

from ospnext_ms.reporting.monitor import Monitor, StepClock, format_seconds, read_metrics
from ospnext_ms.reporting.policy_curves import plot_run

CURVES = "reward_curve.png"


def update_figures(scores, advantages, updates, with_kl):
    """Figures of an iteration's rewards and updates, {name: number}.

    `rescoring_difference` is how far the log-probabilities of the first optimiser step are from those of the scoring;
    `ratio_deviation_before` is that of the first optimiser step, whose ratios are taken before anything has changed;
    `ratio_deviation_after` that of the last one (null with a single step). `kl` is null where it is not computed.
    """
    total = scores.total[~np.isnan(scores.total)]
    within = [np.nanmean(values) if (~np.isnan(values)).any() else float("nan") for values in scores.parts.values()]
    figures = {
        "reward_mean": float(total.mean()) if len(total) else None,
        "reward_std": float(total.std()) if len(total) else None,
        **{f"reward/{name}": float(mean) for name, mean in zip(scores.parts, within, strict=True)},
        **{f"failed/{name}": count for name, count in scores.failed.items()},
        "zero_spread_share": advantages.zero_spread / advantages.groups,
        "incomplete_groups": advantages.incomplete,
        "updates": len(updates),
    }
    if updates:
        ratios = [update["ratios"] for update in updates]
        figures |= {
            "policy_loss": float(np.mean([update["loss"] for update in updates])),
            "gradient_norm": float(np.mean([update["norm"] for update in updates])),
            "clip_factor": float(np.mean([update["factor"] for update in updates])),
            "learning_rate": updates[-1]["rate"],
            "rescoring_difference": updates[0]["rescoring"],
            "ratio_deviation_before": _deviation(ratios[0]),
            "ratio_deviation_after": _deviation(ratios[-1]) if len(ratios) > 1 else None,
            "clip_fraction": float(np.mean([(np.abs(update["ratios"] - 1) > update["clip"]).mean()
                                            for update in updates if update["ratios"].size] or [0.0])),
            "kl": float(np.mean([update["kls"].mean() for update in updates if update["kls"].size] or [0.0]))
                  if with_kl else None,
        }
    return figures


def _deviation(ratios):
    return float(np.abs(ratios - 1).max()) if ratios.size else 0.0


class PolicyMonitor:
    """Figures on the one process that reports: metrics.jsonl, TensorBoard, a line an iteration, curves at the end."""

    def __init__(self, folder, config, iterations_done):
        total = config.runner_config.iterations
        self._monitor = Monitor(folder, total, "", config.callbacks.tensorboard, iterations_done)
        self._clock = StepClock(total - iterations_done)
        self._total = total
        self._print_every = config.callbacks.per_print_times

    def iteration(self, done, figures):
        """Notes the figures of an iteration, counted from 1."""
        seconds = self._clock.tick()
        parts = figures.pop("seconds")
        figures = {**figures, "iteration_seconds": seconds, **{f"seconds/{name}": s for name, s in parts.items()}}
        self._monitor.record(done, figures)
        if done % self._print_every and done != self._total:
            return
        words = [f"iteration {done}/{self._total}", f"window {figures['window_start']}"]
        words += [f"{label} {figures[name]:.4g}" for label, name in (
            ("reward", "reward_mean"), ("spread", "reward_std"), ("kl", "kl"), ("clipped", "clip_fraction"),
            ("norm", "gradient_norm"), ("zero spread", "zero_spread_share")) if figures.get(name) is not None]
        words.append(f"{seconds:.1f} s")
        if self._clock.seconds_left is not None:
            words.append(f"left {format_seconds(self._clock.seconds_left)}")
        failed = sum(count for name, count in figures.items() if name.startswith("failed/"))
        print("  ".join(words + ([f"WITHOUT A SCORE {failed}"] if failed else [])), flush=True)

    def evaluation(self, done, figures):
        """Notes figures of the held-out prompts."""
        self._monitor.record(done, figures)
        self._monitor.say(f"iteration {done}: held-out reward {figures['eval/reward']:.4f} "
                          f"+- {figures['eval/standard_error']:.4f}")
        self._clock.tick()
        self._clock.steps_left += 1

    def say(self, text):
        """Prints a line."""
        self._monitor.say(text)

    def close(self):
        """Finishes the files and draws the curves; returns their path in a list."""
        self._monitor.close()
        return [plot_run(read_metrics(self._monitor.folder), self._monitor.folder / CURVES)]
