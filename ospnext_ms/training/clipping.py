"""Adaptive clipping of the gradient norm (OSP-Next, arXiv 2605.28691). Plain Python numbers, on the host."""

import math
from dataclasses import asdict, dataclass

# After so many rejected norms in a row they are what is usual now, and move the averages: each as what it is, but at
# most so many times the threshold, so that one huge norm among them is none.
PATIENCE = 20
GROWTH = 2.0


@dataclass
class AdaptiveClipper:
    """Learns what gradient norm is usual and scales larger ones down.

    m and v are moving averages of the norm and of its squared deviation from m (from m as it was before that norm came
    in). The threshold is m + deviations * sqrt(v). A norm above it is scaled down to it and stays out of the averages,
    unless PATIENCE of them came in a row: a threshold that rejects everything would never learn otherwise. The first
    norm above 0 starts m at min(start, 3 * norm), and v at 0; norms of 0 before it start nothing.

    Args:
        decay: of both averages. deviations: how many standard deviations above m are usual.
        start: bound of the first m.
    """

    decay: float = 0.99
    deviations: float = 3.0
    start: float = 1.0
    mean: float | None = None
    variance: float = 0.0
    rejected: int = 0

    def __call__(self, norm):
        """Takes in a step's gradient norm and returns the factor, at most 1, by which to multiply the gradient.

        Raises:
            ValueError: `norm` is negative or not finite (training has to stop before it comes here).
        """
        if not 0 <= norm < math.inf:
            raise ValueError(f"the gradient norm is {norm}; it must be a finite number of at least 0")
        if self.mean is None:
            if norm == 0:
                return 1.0
            self.mean = min(self.start, 3 * norm)
        threshold = self.threshold
        if norm > threshold:
            self.rejected += 1
            if self.rejected > PATIENCE:
                self._take_in(min(norm, GROWTH * threshold))
            return threshold / norm
        self.rejected = 0
        self._take_in(norm)
        return 1.0

    def _take_in(self, norm):
        deviation = norm - self.mean
        self.mean = self.decay * self.mean + (1 - self.decay) * norm
        self.variance = self.decay * self.variance + (1 - self.decay) * deviation**2

    @property
    def threshold(self):
        """The largest norm that passes unchanged; None before the first one."""
        return None if self.mean is None else self.mean + self.deviations * math.sqrt(self.variance)

    def state(self):
        """JSON values from which `restore` makes an equal clipper."""
        return asdict(self)

    def restore(self, state):
        """Takes over the averages of `state`; decay, deviations and start stay as configured."""
        self.mean, self.variance, self.rejected = state["mean"], state["variance"], state.get("rejected", 0)
        if self.threshold == 0:
            # Of a version in which a first norm of 0 was taken for the usual one.
            self.mean = None
