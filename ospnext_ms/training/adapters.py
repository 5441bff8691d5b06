"""Adapters as a run leaves them, in PEFT's format: in every checkpoint, and at the end beside the checkpoints.

    step_00000100/adapter/          as trained: adapter_config.json, adapter_model.safetensors
    step_00000100/adapter_ema/      their average, the one to use
"""

from pathlib import Path

from ospnext_ms.storage import fingerprint
from ospnext_ms.storage.peft_format import CONFIG_FILE, WEIGHTS_FILE, write_adapter
from ospnext_ms.storage.training_checkpoint import ADAPTERS
from ospnext_ms.training.state import EMA, PARAMETERS

FOLDERS = dict(zip((PARAMETERS, EMA), ADAPTERS, strict=True))


class AdapterFiles:
    """Writes the adapters of a run.

    Args:
        adapters: models.lora.Adapters. state: TrainState of their parameters.
    """

    def __init__(self, adapters, state):
        self._adapters = adapters
        self._state = state

    @property
    def nbytes(self):
        """Bytes of what is written at a time."""
        return sum(parameter.nbytes for group in FOLDERS for parameter in self._state.groups[group].values())

    def copy(self):
        """Function (folder) -> paths that writes the adapters as they are now, whenever it is called."""
        names = list(self._adapters.named_parameters)
        arrays = {folder: self._adapters.arrays([self._state.groups[group][name] for name in names])
                  for group, folder in FOLDERS.items()}

        def write(to):
            for folder, pairs in arrays.items():
                write_adapter(Path(to) / folder, self._adapters.config, pairs, overwrite=True)
            return [Path(to) / folder / name for folder in arrays for name in (CONFIG_FILE, WEIGHTS_FILE)]

        return write

    def write(self, folder):
        """Writes them into a folder and returns the paths of their weights."""
        return [path for path in self.copy()(folder) if path.name == WEIGHTS_FILE]


def start_fingerprint(lora):
    """Hash of the adapter that a LoRASection starts from; one that is gone is no matter to a resumed run."""
    folder = lora.checkpoint and Path(lora.checkpoint)
    return fingerprint.of_files(sorted(folder.iterdir()) if folder and folder.is_dir() else [])
