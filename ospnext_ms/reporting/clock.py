"""How long the steps of a run take, their stages, and what is left."""

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
