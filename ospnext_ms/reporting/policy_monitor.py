"""What a post-training run tells: a line an iteration, metrics, TensorBoard, curves at the end."""

from ospnext_ms.reporting.metrics import read_metrics
from ospnext_ms.reporting.monitor import Monitor
from ospnext_ms.reporting.policy_curves import plot_run
from ospnext_ms.reporting.progress import StepClock, format_seconds

CURVES = "reward_curve.png"


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
