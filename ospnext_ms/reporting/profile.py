"""What some steps of a run spend their time on: a trace of their operators and a table of their parts."""

import time
from pathlib import Path

FOLDER = "profile"
_END = object()


class StepProfile:
    """The steps that a ProfileSection names, of this process; without one, of no step.

    A part ends with `end(part)`, wherever in a step that is, and the next begins.

    Args:
        section: ProfileSection or None. folder: of the run. rank: of the process. say: function that prints a line,
            None on processes that do not report.
    """

    def __init__(self, section, folder, rank, say=None):
        self._section, self._say = section, say
        self._folder, self._name = Path(folder) / FOLDER, f"rank_{rank}"
        self._trace, self._last = None, 0.0
        # Seconds by part, over the steps done.
        self._parts, self._steps = {}, 0

    def steps(self, first, items):
        """Yields the items, those of the steps `first`, `first` + 1, ...; a step ends when the next is asked for."""
        step, items = first, iter(items)
        if self._section and self._say and first > self._section.start:
            self._say(f"callbacks.profile begins with step {self._section.start}, which is done already: no profile")
        try:
            while True:
                self._begin(step)
                item = next(items, _END)
                if item is _END:
                    return
                self.end("data")
                yield item
                self.end("rest")
                self._finish(step)
                step += 1
        finally:
            self._stop()

    def end(self, part):
        """A part of the step ends here; nothing where no step is looked at."""
        if self._trace is None:
            return
        now = time.perf_counter()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    def take(self, parts):
        """The part that ends here is made up of these {part: seconds} and what is left of it, the rest."""
        if self._trace is None:
            return
        for part, seconds in parts.items():
            self._parts[part] = self._parts.get(part, 0.0) + seconds
        self._last += sum(parts.values())

    def _begin(self, step):
        if self._section and self._trace is None and step == self._section.start:
            self._trace = _trace(self._folder, self._name, self._section.steps)
        self._last = time.perf_counter()

    def _finish(self, step):
        if self._trace is None:
            return
        self._trace.step()
        self._steps += 1
        if step == self._section.start + self._section.steps - 1:
            self._stop()

    def _stop(self):
        if self._trace is None:
            return
        path = self._trace.stop()
        self._trace = None
        if self._say and self._steps:
            seconds = {part: total / self._steps for part, total in self._parts.items()}
            last = self._section.start + self._steps - 1
            self._say("\n".join([f"profile of steps {self._section.start} to {last}, seconds of one on this process:",
                                 *table(seconds)]))
            self._say(f"trace: {path}" if path else f"the profiler wrote no trace; see the logs in {self._folder}")


def _trace(folder, name, steps):
    # Here, because it loads MindSpore, before which all that can be checked is.
    from ospnext_ms.kernels.profiler import Trace

    return Trace(folder, name, steps)


def table(seconds):
    """Lines of a table of {part: seconds}, with shares of the whole."""
    whole = sum(seconds.values())
    width = max(map(len, [*seconds, "together"]))
    return [f"  {part:{width}}  {value:9.4f}  {value / whole if whole else 0:6.1%}"
            for part, value in [*seconds.items(), ("together", whole)]]


class SamplingTrace:
    """A trace of two sampling steps of a run of `generate`, without its first, which compiles; of what there is where
    there are fewer.

    Called after every step, as `on_step` of generation.text_to_video.

    Args:
        folder: of the run. rank: of the process. steps: of all batches of this process together.
    """

    def __init__(self, folder, rank, steps):
        self._folder, self._name = Path(folder) / FOLDER, f"rank_{rank}"
        self._skipped = min(1, steps - 1)
        self._count = min(2, steps - self._skipped)
        self._done, self._trace = 0, None
        self.path = None
        if not self._skipped:
            self._start()

    def __call__(self):
        self._done += 1
        if self._done == self._skipped:
            self._start()
        elif self._trace is not None:
            self._trace.step()
            if self._done == self._skipped + self._count:
                self.stop()

    def stop(self):
        """Ends it, where a run is left earlier; the trace's path or None."""
        if self._trace is not None:
            self.path, self._trace = self._trace.stop(), None
        return self.path

    def _start(self):
        self._trace = _trace(self._folder, self._name, self._count)
