"""A run in Weights & Biases."""

import os
from pathlib import Path

PROJECT = "ospnext_ms"


class Wandb:
    """An offline run in FOLDER/wandb, which `wandb sync` uploads; online where WANDB_MODE says so.

    Each start of a run is one of theirs; those of one run are a group.
    """

    def __init__(self, folder, configuration, steps_done=0):
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode != "online":
            # It would report its own errors over the network.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # Importing it takes seconds, which runs without it should not pay.
        import wandb

        name = Path(folder).name
        # Output and sources stay here; nothing is printed.
        settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, disable_code=True)
        self._run = wandb.init(
            project=PROJECT, group=name, name=f"{name} from step {steps_done}" if steps_done else name, dir=str(folder),
            mode=mode, config=configuration, reinit="create_new", settings=settings)
        self._image, self._video = wandb.Image, wandb.Video

    def add(self, step, figures):
        """Its history."""
        self._run.log(figures, step=step)

    def picture(self, step, name, path):
        """Shows a PNG file."""
        self._run.log({name: self._image(str(path))}, step=step)

    def video(self, step, name, path):
        """Shows an mp4 file."""
        self._run.log({name: self._video(str(path), format="mp4")}, step=step)

    def close(self):
        """Finishes the run."""
        self._run.finish()
