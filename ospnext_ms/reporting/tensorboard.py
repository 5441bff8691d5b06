"""Figures of a run as scalars of TensorBoard."""

from pathlib import Path


class Scalars:
    """Event files in FOLDER/tensorboard; TensorBoard drops what was written of steps after `steps_done`."""

    def __init__(self, folder, steps_done=0):
        # Importing it takes a second, which runs without it should not pay.
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=steps_done + 1)

    def add(self, step, figures):
        """Writes those of the figures that are numbers."""
        for name, value in figures.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def picture(self, step, name, path):
        """Shows a PNG file."""
        from matplotlib.image import imread

        self._writer.add_image(name, imread(path), step, dataformats="HWC")

    def close(self):
        """Finishes the files."""
        self._writer.close()
