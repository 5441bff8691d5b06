"""Notices that most gradients are clipped: the run then learns with a lower rate than the one configured."""

from collections import deque

WINDOW = 100


class ClipWatch:
    """Looks at the factors of the last WINDOW steps and speaks at most once a window."""

    def __init__(self):
        self._factors = deque(maxlen=WINDOW)
        self._silent_for = 0

    def __call__(self, figures):
        """A warning, or None. `figures`: of a step; looked at are clip_factor and, for the words, clip_threshold."""
        if "clip_factor" not in figures:
            return None
        self._factors.append(figures["clip_factor"])
        self._silent_for = max(self._silent_for - 1, 0)
        clipped = sum(factor < 1 for factor in self._factors)
        if self._silent_for or len(self._factors) < WINDOW or clipped <= WINDOW // 2:
            return None
        self._silent_for = WINDOW
        threshold = figures.get("clip_threshold")
        now = "" if threshold is None else f", now to a norm of {threshold:.4g}"
        return (f"{clipped} of the last {WINDOW} gradients were clipped{now}: look at the loss, the learning rate and "
                "clipping.start")
