"""Progress of a run in words and seconds."""

import math
import time

# Of the running mean of step times behind "time left".
_TIME_DECAY = 0.9


class StepClock:
    """Times the steps and estimates what is left; the first step, which compiles, stays out of the estimate."""

    def __init__(self, steps_left):
        self.steps_left = steps_left
        self._last = time.perf_counter()
        self._mean = None
        self._is_first = True

    def tick(self):
        """Seconds since the last tick."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self.steps_left -= 1
        if not self._is_first:
            self._mean = seconds if self._mean is None else _TIME_DECAY * self._mean + (1 - _TIME_DECAY) * seconds
        self._is_first = False
        return seconds

    def skip(self):
        """Leaves out the time since the last tick: it was not spent on a step."""
        self._last = time.perf_counter()

    @property
    def seconds_left(self):
        """Estimate for the steps that are left; None before the second step is done."""
        return None if self._mean is None else self._mean * self.steps_left


def progress_line(step, total_steps, figures, seconds_left, note):
    """One line of text from a step's figures."""
    words = [f"step {step}/{total_steps}", f"loss {figures['loss']:.5f}", f"norm {figures['gradient_norm']:.4f}",
             f"lr {figures['learning_rate']:.3g}", f"{figures['step_seconds']:.3f} s/step",
             f"{figures['samples_per_second']:.3g} samples/s"]
    if "mfu" in figures:
        words.append(f"MFU {100 * figures['mfu']:.1f}%")
    if seconds_left is not None:
        words.append(f"left {format_seconds(seconds_left)}")
    return "  ".join(words + ([note] if note else []))


def format_seconds(seconds):
    """h:mm:ss, rounded up."""
    seconds = math.ceil(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def model_flops_utilisation(forward_flops, samples, seconds, peak_tflops, devices):
    """Share of the peak that useful work takes: forward and twice as much backward; recomputation does not count."""
    return 3 * forward_flops * samples / (seconds * peak_tflops * 1e12 * devices)
