"""What a run tells: a progress line, a file of figures, TensorBoard scalars, a plot of the loss."""

import json
import math
import time
from pathlib import Path

from ospnext_ms.storage.files import atomic_path

METRICS = "metrics.jsonl"
LOSS_CURVE = "loss_curve.png"
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


class Monitor:
    """Figures of a run, on the one process that reports.

    `metrics.jsonl` gets one JSON object a step, with all digits; whoever resumes passes the step it resumes at, and
    what was written for later steps is dropped.

    Args:
        folder: of the run. total_steps: of the run. note: words for every progress line, or "".
        tensorboard: write scalars to FOLDER/tensorboard. first_step: number of steps done before.
        print_every: steps between two lines.
    """

    def __init__(self, folder, total_steps, note="", tensorboard=False, first_step=0, print_every=1):
        self.folder = Path(folder)
        self.total_steps = total_steps
        self.note = note
        self.print_every = print_every
        self.folder.mkdir(parents=True, exist_ok=True)
        self._drop_later(first_step)
        self._file = open(self.folder / METRICS, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._writer = None
        if tensorboard:
            # Importing it takes a second, which runs without it should not pay.
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=first_step + 1)

    def step(self, step, figures, seconds_left=None):
        """Notes the figures {name: number} of step `step`, counted from 1."""
        self.record(step, figures)
        if step % self.print_every == 0 or step == self.total_steps:
            print(progress_line(step, self.total_steps, figures, seconds_left, self.note), flush=True)

    def record(self, step, figures):
        """Notes figures without a line."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        if self._writer:
            for name, value in figures.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(name, value, step)

    def say(self, text):
        """Prints a line of another kind."""
        print(f"{text}  {self.note}".rstrip(), flush=True)

    def close(self):
        """Finishes the files and draws the loss; returns the plot's path, None where there is nothing to draw."""
        self._file.close()
        if self._writer:
            self._writer.close()
        records = read_metrics(self.folder)
        if not any("loss" in record for record in records):
            return None
        from ospnext_ms.reporting.loss_curve import plot_loss

        return plot_loss(records, self.folder / LOSS_CURVE, self.note)

    def _drop_later(self, first_step):
        path = self.folder / METRICS
        if not path.is_file():
            return
        kept = [record for record in read_metrics(self.folder) if record["step"] <= first_step]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")


def read_metrics(folder):
    """The records of a run: [{"step": ..., ...}], none where there is no file. A last line that a kill cut off is left
    out."""
    path, records = Path(folder) / METRICS, []
    if not path.is_file():
        return records
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


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
