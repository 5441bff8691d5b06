"""A run in TensorBoard."""

import json
from pathlib import Path


class TensorBoard:
    """Event files in FOLDER/tensorboard; TensorBoard drops what was written of steps after `steps_done`.

    Videos are not shown: its own form of them is GIF.
    """

    def __init__(self, folder, configuration, steps_done=0):
        # Importing it takes a second, which runs without it should not pay.
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=steps_done + 1)
        self._writer.add_text("configuration", f"```\n{json.dumps(configuration, indent=1)}\n```", steps_done)

    def add(self, step, figures):
        """Scalars."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step, name, path):
        """Shows a PNG file."""
        from matplotlib.image import imread

        self._writer.add_image(name, imread(path), step, dataformats="HWC")

    def video(self, step, name, path):
        """Nothing."""

    def close(self):
        """Finishes the files."""
        self._writer.close()
