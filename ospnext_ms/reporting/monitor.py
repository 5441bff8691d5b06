"""One run's figures to all who want them: the file, trackers, the progress line, the curves at the end."""

import dataclasses
import json
from pathlib import Path

from ospnext_ms.reporting.clip_watch import ClipWatch
from ospnext_ms.reporting.metrics import MetricsFile, read_metrics
from ospnext_ms.reporting.report import write_report
from ospnext_ms.reporting.trackers import open_trackers
from ospnext_ms.storage.files import atomic_path

CONFIGURATION = "configuration.json"


class Monitor:
    """What a run tells, on the one process that reports. Writes its resolved configuration at once.

    Args:
        config: TrainConfig or PostTrainConfig. total_steps: of the run (or iterations). steps_done: before this start.
        line: of reporting.progress, the text of a step. draw: of reporting.curves, the picture of a run.
        note: words at the end of every line, or "". about: {name: value} of what runs it, for the report.
    """

    def __init__(self, config, total_steps, steps_done, line, draw, note="", about=None):
        self.folder = Path(config.output_dir)
        self.total_steps = total_steps
        self.note, self.about = note, about or {}
        self._line, self._draw = line, draw
        self._print_every = config.callbacks.per_print_times
        self._clips = ClipWatch()
        self._file = MetricsFile(self.folder, steps_done)
        configuration = json.dumps(dataclasses.asdict(config), indent=1)
        self._configuration = json.loads(configuration)
        with atomic_path(self.folder / CONFIGURATION) as path:
            path.write_text(configuration + "\n", encoding="utf-8")
        self._trackers = open_trackers(config.callbacks.trackers, self.folder, self._configuration, steps_done,
                                       self.say)

    def step(self, step, figures, seconds_left=None):
        """Notes the figures {name: number} of step `step`, counted from 1, and prints its line where one is due."""
        self.record(step, figures)
        if step % self._print_every == 0 or step == self.total_steps:
            self.say(self._line(step, self.total_steps, figures, seconds_left))

    def record(self, step, figures):
        """Notes figures without a line, but for a warning."""
        self._file.add(step, figures)
        for tracker in self._trackers:
            tracker.add(step, figures)
        if warning := self._clips(figures):
            self.say(f"step {step}: {warning}")

    def picture(self, step, name, path):
        """Shows a PNG file as `name` at `step` in the trackers."""
        for tracker in self._trackers:
            tracker.picture(step, name, path)

    def video(self, step, name, path):
        """Shows an mp4 file as `name` at `step` in those trackers that show videos."""
        for tracker in self._trackers:
            tracker.video(step, name, path)

    def say(self, text):
        """Prints a line."""
        print(f"{text}  {self.note}".rstrip(), flush=True)

    def close(self):
        """Finishes the files, draws the curves and writes the report; returns the paths of what there is of the two."""
        for file in (self._file, *self._trackers):
            file.close()
        curve = self._draw(read_metrics(self.folder), self.folder, self.note)
        try:
            report = write_report(self.folder, self._configuration, self.about, curve)
        # What was learned is saved; a page about it that cannot be written is no reason to fail.
        except Exception as error:
            self.say(f"the report could not be written: {' '.join(repr(error).split())}")
            report = None
        return [path for path in (curve, report) if path]
