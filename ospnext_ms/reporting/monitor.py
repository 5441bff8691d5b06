"""What a run tells: a progress line, a file of figures, TensorBoard scalars, a plot of the loss."""

import json
from pathlib import Path

from ospnext_ms.reporting.metrics import METRICS, drop_later, read_metrics
from ospnext_ms.reporting.progress import progress_line

LOSS_CURVE = "loss_curve.png"


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
        drop_later(self.folder, first_step)
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
