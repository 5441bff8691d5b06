"""What can be known before a run: are the files there, can the results be written? No framework, no weights."""

import os
from pathlib import Path

from ospnext_ms.storage import peft_format
from ospnext_ms.storage.files import current_folder
from ospnext_ms.storage.open_weights import read_headers


def check_files(config):
    """Checks, without reading any weights, that the checkpoints and the tokenizer are there and output can be written.

    Raises:
        FileNotFoundError: a file or folder the configuration names is not there.
        ValueError: a checkpoint is no safetensors file or truncated, or the output folder cannot be written to.
    """
    model = config.model
    for name in ("dit", "vae", "text_encoder"):
        try:
            read_headers(getattr(model, name).checkpoint)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"model.{name}.checkpoint: {error}") from error
    if not Path(model.text_encoder.tokenizer).is_dir():
        raise FileNotFoundError(f"model.text_encoder.tokenizer: no folder {model.text_encoder.tokenizer} "
                                f"{current_folder()}")
    check_output_folder(Path(config.output_dir))


def check_adapters(config):
    """Checks that a GenerateConfig's adapters are there and of a kind that can be used; reads no weights.

    Raises:
        FileNotFoundError, ValueError: see peft_format.read_stored_adapter.
    """
    for i, (folder, _) in enumerate(config.used_adapters):
        try:
            peft_format.check_adapter(folder)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{'adapter' if config.adapter else f'adapters[{i}]'}: {error}") from error


def check_output_folder(folder, name="output_dir"):
    """ValueError where a folder cannot be written to, or is no folder; `name`: of what names it."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{name} is {folder}, but {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{name} is {folder}, but {existing} cannot be written to")
