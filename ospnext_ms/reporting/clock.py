"""How long the steps of a run take, their stages, and what is left."""

import time

# Of the running mean of step times behind "time left".
_TIME_DECAY = 0.9
STEPS_OF_TRIALS = 16


class StepClock:
    """Times the steps and estimates what is left.

    The first step, which compiles, stays out of the estimate, and compiled on a CPU the first 16: MindSpore tries there
    how many threads every operator runs best on.

    Args:
        steps_left: of the run. tries_threads: whether networks are compiled for a CPU.
    """

    def __init__(self, steps_left, tries_threads=False):
        self.steps_left = steps_left
        self._unusual = STEPS_OF_TRIALS if tries_threads else 1
        self._last = time.perf_counter()
        self._mean = None

    def tick(self):
        """Seconds since the last tick."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self.steps_left -= 1
        if self._unusual:
            self._unusual -= 1
        else:
            self._mean = seconds if self._mean is None else _TIME_DECAY * self._mean + (1 - _TIME_DECAY) * seconds
        return seconds

    def skip(self):
        """Leaves out the time since the last tick: it was not spent on a step."""
        self._last = time.perf_counter()

    @property
    def seconds_left(self):
        """Estimate for the steps that are left; None before a step that counts is done."""
        return None if self._mean is None else self._mean * self.steps_left


class StageClock:
    """Seconds of the stages of one step, {"seconds/STAGE": number} in `figures`."""

    def __init__(self):
        self.figures = {}
        self._last = time.perf_counter()

    def end(self, stage):
        """A stage ends here, and the next begins."""
        now = time.perf_counter()
        self.figures[f"seconds/{stage}"] = round(now - self._last, 3)
        self._last = now
