"""Where the figures, pictures and configuration of a run go beside its own files: TensorBoard, wandb, SwanLab.

A tracker has add(step, figures), picture(step, name, path), video(step, name, path) and close(). None of them may stop
a run: one that fails is told about once and then left alone.
"""

import importlib
from importlib.util import find_spec

# Name in a configuration -> (module and class of the tracker, the package that it needs).
TRACKERS = {
    "tensorboard": ("ospnext_ms.reporting.tensorboard", "TensorBoard", "tensorboardX"),
    "wandb": ("ospnext_ms.reporting.wandb", "Wandb", "wandb"),
    "swanlab": ("ospnext_ms.reporting.swanlab", "SwanLab", "swanlab"),
}


def check_installed(names):
    """ValueError where the package of a tracker is not installed; imports nothing."""
    for name in names:
        package = TRACKERS[name][2]
        if find_spec(package) is None:
            raise ValueError(f"callbacks.trackers names {name}, but the package {package} is not installed; "
                             f"pip install -e '.[trackers]', or leave {name} out")


def open_trackers(names, folder, configuration, steps_done, say):
    """One Guarded tracker for each name.

    Args:
        folder: of the run; what trackers write locally lies in it. configuration: of the run, JSON values.
        steps_done: the step that the run starts or resumes at. say: function that prints a line.

    Raises:
        ValueError: a tracker's package is missing, or it cannot start.
    """
    check_installed(names)
    trackers = []
    for name in names:
        module, cls, _ = TRACKERS[name]
        try:
            tracker = getattr(importlib.import_module(module), cls)(folder, configuration, steps_done)
        except Exception as error:
            words = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"the tracker {name} cannot start: {words}") from error
        trackers.append(Guarded(name, tracker, say))
    return trackers


class Guarded:
    """A tracker whose first failure is told in a line, and its last: from then on it is told nothing.

    Attributes:
        unheard: how often it would have been told something after that.
    """

    def __init__(self, name, tracker, say):
        self._name, self._tracker, self._say = name, tracker, say
        self.unheard = 0

    def add(self, step, figures):
        """Notes those of the figures {name: value} of a step that are numbers."""
        self._tell("add", step, {name: value for name, value in figures.items()
                                 if isinstance(value, int | float) and not isinstance(value, bool)})

    def picture(self, step, name, path):
        """Shows a PNG file."""
        self._tell("picture", step, name, path)

    def video(self, step, name, path):
        """Shows an mp4 file."""
        self._tell("video", step, name, path)

    def close(self):
        """Finishes it."""
        self._tell("close")
        if self.unheard:
            self._say(f"the tracker {self._name} was not told {self.unheard} things after it had failed")

    def _tell(self, what, *arguments):
        if self._tracker is None:
            self.unheard += what != "close"
            return
        try:
            getattr(self._tracker, what)(*arguments)
        # Whatever a library raises: a run of days does not end because nobody could be told about it.
        except Exception as error:
            self._tracker = None
            self._say(f"the tracker {self._name} failed and is told nothing more: {' '.join(repr(error).split())}")
