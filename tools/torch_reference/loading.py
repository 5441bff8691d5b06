"""Reads a checkpoint with the original parameter names into one of the networks."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from ospnext_ms.storage.files import current_folder, refuse_pointer


def load(module, path):
    """Loads a .safetensors, .pth, .pt or .bin file strictly and returns `module`; dtypes and devices stay the module's.

    Raises FileNotFoundError for a missing file, ValueError for another suffix or a git LFS pointer, RuntimeError (from
    `load_state_dict`) naming every missing, unexpected or misshapen parameter.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path} {current_folder()}")
    refuse_pointer(path)
    if path.suffix == ".safetensors":
        weights = load_file(path)
    elif path.suffix in (".pth", ".pt", ".bin"):
        weights = torch.load(path, map_location="cpu", weights_only=True)
    else:
        raise ValueError(f"checkpoint {path} ends in {path.suffix!r}; valid: .safetensors, .pth, .pt, .bin")
    module.load_state_dict(weights, strict=True)
    return module
