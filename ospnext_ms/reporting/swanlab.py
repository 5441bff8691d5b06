"""A run in SwanLab."""

import os
from pathlib import Path

from ospnext_ms.reporting.wandb import PROJECT


class SwanLab:
    """An offline run in FOLDER/swanlab, which `swanlab sync` uploads; otherwise as SWANLAB_MODE says.

    Each start of a run is one of theirs; those of one run are a group. Videos are not shown: theirs are GIF.
    """

    def __init__(self, folder, configuration, steps_done=0):
        # Importing it takes seconds, which runs without it should not pay.
        import swanlab

        name, logs = Path(folder).name, Path(folder) / "swanlab"
        logs.mkdir(parents=True, exist_ok=True)
        self._run = swanlab.init(
            project=PROJECT, group=name, name=f"{name} from step {steps_done}" if steps_done else name,
            log_dir=str(logs), mode=os.environ.get("SWANLAB_MODE", "offline"), config=configuration)
        self._image = swanlab.Image

    def add(self, step, figures):
        """Its metrics."""
        self._run.log(figures, step=step)

    def picture(self, step, name, path):
        """Shows a PNG file."""
        self._run.log({name: self._image(str(path))}, step=step)

    def video(self, step, name, path):
        """Nothing."""

    def close(self):
        """Finishes the run."""
        self._run.finish()
