"""Where the weights come from: a file, shards with an index, or a model's folder."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ospnext_ms.storage.files import current_folder, refuse_pointer
from ospnext_ms.storage.safetensors_io import (
    INDEX_SUFFIX,
    check_shard,
    find_weights_file,
    read_header,
    read_index,
)
from ospnext_ms.storage.training_checkpoint import is_group, problems_of, read_group
from tools.conversion import torch_file
from tools.conversion.state_dicts import choose, split_prefixes

# Wan2.1's released folder holds the weights of all three networks side by side.
_WAN_FILES = {
    "dit": ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"),
    "vae": ("Wan2.1_VAE.pth",),
    "umt5": ("models_t5_umt5-xxl-enc-bf16.pth",),
}
# What PEFT puts beside a layer of a network that it has not been merged into.
LORA_PART = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b")
_PIPELINE_FOLDERS = {"dit": "transformer", "vae": "vae", "umt5": "text_encoder"}


@dataclass(frozen=True)
class Source:
    """Tensors by name, none of them loaded, the config.json beside them where there is one, and {reason: names} of what
    else the file holds.
    """

    path: Path
    tensors: Mapping
    config: Mapping | None
    left_out: Mapping[str, list]


def open_source(kind: str, path: Path, key: str | None = None) -> Source:
    """Finds a network's weights at `path` and reads names, dtypes and shapes of them all.

    `path` is a .safetensors or PyTorch file, an index of shards, a model's folder (Wan2.1, diffusers, transformers,
    ours), a diffusers pipeline's folder with such folders in it, or a group of a training checkpoint
    (.../step_00000100/ema), which is compared with its SHA-256. `key` chooses among several sets of weights in a file
    (see state_dicts).

    Raises:
        FileNotFoundError: nothing there, or shards missing (named).
        ValueError: a file that is damaged, of another format, or ambiguous, also for want of a key.
        ImportError: a PyTorch file without PyTorch.
    """
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path} {current_folder()}")
    if is_group(path):
        problems = problems_of(path.parent)
        if problems:
            raise ValueError(f"{path} is refused: " + "; ".join(problems))
        return Source(path, read_group(path), None, {})
    if path.is_dir():
        path = _folder_of_network(kind, path)
    weights = find_weights(path, _WAN_FILES[kind]) if path.is_dir() else path
    config = weights.parent / "config.json"
    found, others = _read_tensors(weights)
    try:
        sets = split_prefixes(found)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error
    adapters = {label: [name for name in tensors if LORA_PART.search(name)] for label, tensors in sets.items()}
    sets = {label: {name: tensor for name, tensor in tensors.items() if name not in adapters[label]}
            for label, tensors in sets.items()}
    tensors, left_out = choose(weights, {label: tensors for label, tensors in sets.items() if tensors}, key)
    if names := [name for several in adapters.values() for name in several]:
        left_out["an adapter, which `lora --source` reads"] = names
    if others:
        left_out["no weights"] = others
    return Source(weights, tensors, _read_config(config) if config.is_file() else None, left_out)


def _folder_of_network(kind, folder):
    """The folder itself, or in a pipeline's folder that of the network."""
    is_pipeline = (folder / "model_index.json").is_file()
    if kind == "dit":
        _refuse_two_transformers(folder)
    if not is_pipeline:
        return folder
    inner = folder / _PIPELINE_FOLDERS[kind]
    if not inner.is_dir():
        there = ", ".join(sorted(entry.name for entry in folder.iterdir() if entry.is_dir())) or "none"
        raise FileNotFoundError(f"{folder} is a pipeline of diffusers without the folder {inner.name} that the weights "
                                f"should lie in (its folders: {there}); was it downloaded completely?")
    return inner


def _refuse_two_transformers(folder):
    """ValueError for Wan2.2's A14B, which has one transformer for high and another for low noise."""
    for pair in (("high_noise_model", "low_noise_model"), ("transformer", "transformer_2")):
        if all((folder / name).is_dir() for name in pair):
            raise ValueError(f"{folder} holds two transformers ({' and '.join(pair)}), as Wan2.2's A14B does, which is "
                             "not supported: Wan2.1 and OSP-Next have one. To convert one of the two give its folder")


def find_weights(folder, names):
    """The first file of these names in a folder or, without one, find_weights_file's, of safetensors before PyTorch's.

    Raises as find_weights_file.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    try:
        return find_weights_file(folder)
    except FileNotFoundError:
        return find_weights_file(folder, torch_file.SUFFIXES)


def _read_tensors(weights):
    """({key: {name: tensor}}, [keys of all else]) of a file, or of all shards of an index."""
    if not weights.name.endswith(INDEX_SUFFIX):
        return read_file(weights)
    tensors = {}
    for shard, names in read_index(weights).items():
        found = read_file(weights.parent / shard)[0].get("", {})
        check_shard(weights, shard, names, found)
        tensors.update(found)
    return {"": tensors}, []


def read_file(path):
    """({key: {name: tensor}}, [keys of all else]) of a safetensors or PyTorch file.

    Raises:
        ValueError, ImportError: another format, or see read_header and read_torch_file.
    """
    if path.suffix == ".safetensors":
        return {"": read_header(path)[0]}, []
    if path.suffix in torch_file.SUFFIXES:
        return torch_file.read_torch_file(path)
    refuse_pointer(path)
    raise ValueError(f"{path} is of no known format; valid: .safetensors, {', '.join(torch_file.SUFFIXES)}, "
                     f"an index of shards (*{INDEX_SUFFIX}), or a folder with one of them")


def _read_config(path):
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        refuse_pointer(path)
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no configuration: expected an object")
    return config
