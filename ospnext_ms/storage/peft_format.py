"""LoRA adapters on the disk, as PEFT (huggingface/peft) stores them: adapter_config.json and adapter_model.safetensors.

Arrays are named base_model.model.LAYER.lora_A.weight [rank, in] and .lora_B.weight [out, rank], LAYER being the name of
the linear in the network. No framework is needed.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ospnext_ms.models.lora_config import LoRAConfig
from ospnext_ms.storage.files import atomic_folder
from ospnext_ms.storage.safetensors_io import ArrayTensor, read_header, write_file

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# A [rank, in] and B [out, rank] of a layer.
Pair = tuple[np.ndarray, np.ndarray]
_NAME = re.compile(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight")

# What PEFT can do to an adapter that is not done here, by the key that asks for it and the value that does not.
_UNSUPPORTED = {"bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False, "rank_pattern": {},
                "alpha_pattern": {}, "modules_to_save": None, "layers_to_transform": None}


def write_adapter(folder: str | os.PathLike, config: LoRAConfig, arrays: Mapping[str, Pair],
                  overwrite: bool = False) -> list[Path]:
    """Writes {layer: (A, B)} with a LoRAConfig; returns the two paths.

    Raises:
        FileExistsError: the folder exists and `overwrite` is not set.
    """
    folder = Path(folder)
    content = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "inference_mode": True,
        "r": config.rank, "lora_alpha": config.alpha, "lora_dropout": 0.0, "target_modules": list(config.targets),
        **_UNSUPPORTED,
    }
    tensors = {f"{PREFIX}{layer}.lora_{which}.weight": ArrayTensor(array)
               for layer, pair in arrays.items() for which, array in zip("AB", pair, strict=True)}
    with atomic_folder(folder, overwrite) as temporary:
        (temporary / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        write_file(temporary / WEIGHTS_FILE, tensors, {"format": "pt"})
    return [folder / CONFIG_FILE, folder / WEIGHTS_FILE]


def read_adapter(folder: str | os.PathLike) -> tuple[LoRAConfig, dict[str, Pair]]:
    """(LoRAConfig, {layer: (A, B)}) of an adapter's folder, arrays in fp32.

    Raises:
        FileNotFoundError: no adapter there.
        ValueError: a file that is damaged, arrays without a partner, or something of PEFT that is not supported.
    """
    config = read_adapter_config(folder)
    return config, read_adapter_arrays(Path(folder) / WEIGHTS_FILE, config.rank)


def read_adapter_config(folder: str | os.PathLike) -> LoRAConfig:
    """The LoRAConfig of an adapter's folder; raises as `read_adapter`."""
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no adapter in {folder}: {name} is missing (current folder {Path.cwd()})")
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        kind, rank, alpha, targets = (content[key] for key in ("peft_type", "r", "lora_alpha", "target_modules"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder / CONFIG_FILE} is no adapter's configuration: {error!r}") from error
    odd = [f"{key} {content[key]!r}" for key, plain in _UNSUPPORTED.items()
           if (content.get(key) or None) != (plain or None)]
    if kind != "LORA" or odd:
        raise ValueError(f"{folder / CONFIG_FILE} asks for what is not supported: "
                         + ", ".join(odd if kind == "LORA" else [f"peft_type {kind!r} (valid: 'LORA')"]))
    if isinstance(targets, str):
        raise ValueError(f"{folder / CONFIG_FILE}: target_modules is the pattern {targets!r}; a list is needed")
    return LoRAConfig(rank=rank, alpha=float(alpha), targets=tuple(sorted(targets)))


def read_adapter_arrays(path: str | os.PathLike, rank: int) -> dict[str, Pair]:
    """{layer: (A, B)}, fp32, of a file with PEFT's names; ValueError where it is not complete."""
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in read_header(path)[0].items():
        match = _NAME.fullmatch(name)
        if not match:
            raise ValueError(f"{path} holds {name}; names must be {PREFIX}LAYER.lora_A.weight or .lora_B.weight")
        arrays.setdefault(match[1], {})[match[2]] = tensor.numpy().astype(np.float32)
    for layer, pair in arrays.items():
        if len(pair) != 2:
            raise ValueError(f"{path}: {layer} has only lora_{next(iter(pair))}")
        if pair["A"].shape[0] != rank or pair["B"].shape[1] != rank:
            raise ValueError(f"{path}: {layer} has shapes {pair['A'].shape} and {pair['B'].shape}; the rank is {rank}")
    return {layer: (pair["A"], pair["B"]) for layer, pair in sorted(arrays.items())}
