"""LoRA adapters on the disk, as PEFT (huggingface/peft) stores them: adapter_config.json and adapter_model.safetensors.

Arrays are named base_model.model.LAYER.lora_A.weight [rank, in] and .lora_B.weight [out, rank], LAYER being the name of
the linear in the network. What an adapter adds besides, which PEFT's form has no place for, lies in
differences.safetensors, by the parameter's name. No framework is needed.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ospnext_ms.models.lora_config import LoRAConfig
from ospnext_ms.storage.adapters import Pair, StoredAdapter
from ospnext_ms.storage.files import atomic_folder, conversion, current_folder, refuse_pointer
from ospnext_ms.storage.safetensors_io import ArrayTensor, StoredTensor, read_header, write_file
from ospnext_ms.storage.training_checkpoint import adapters_in, is_group, problems_of

CONFIG_FILE, WEIGHTS_FILE, DIFFERENCES_FILE = "adapter_config.json", "adapter_model.safetensors", \
    "differences.safetensors"
PREFIX = "base_model.model."
_NAME = re.compile(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.(weight|bias)")
_PARTS = {("A", "weight"): "A", ("B", "weight"): "B", ("B", "bias"): "bias"}

# What PEFT can do to an adapter that is not done here, by the key that asks for it and the value that does not.
_UNSUPPORTED = {"bias": "none", "use_dora": False, "fan_in_fan_out": False, "modules_to_save": None,
                "trainable_token_indices": None, "megatron_config": None}
_conversion = partial(conversion, network="lora")
_PLAIN = {**_UNSUPPORTED, "use_rslora": False, "lora_bias": False, "layers_to_transform": None}


def write_adapter(folder: str | os.PathLike, config: LoRAConfig, arrays: Mapping[str, Pair],
                  overwrite: bool = False) -> list[Path]:
    """Writes {layer: (A, B)} of a LoRAConfig; returns the two paths.

    Raises:
        FileExistsError: the folder exists and `overwrite` is not set.
    """
    sizes = {"r": config.rank, "lora_alpha": config.alpha, "rank_pattern": {}, "alpha_pattern": {}}
    return _write(folder, sizes, list(config.targets), arrays, {}, overwrite)


def write_stored_adapter(folder: str | os.PathLike, adapter: StoredAdapter, overwrite: bool = False) -> list[Path]:
    """Writes a StoredAdapter, layers named in full; returns the paths. Raises as `write_adapter`."""
    sizes = sizes_of(adapter, lambda layer: layer)
    return _write(folder, sizes, list(adapter.pairs), adapter.pairs, adapter.differences, overwrite)


def _write(to: str | os.PathLike, sizes: Mapping[str, Any], targets: Sequence[str], arrays: Mapping[str, Pair],
           differences: Mapping[str, np.ndarray], overwrite: bool) -> list[Path]:
    folder = Path(to)
    content = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "inference_mode": True,
               **sizes, "lora_dropout": 0.0, "target_modules": list(targets), **_PLAIN}
    tensors = {f"{PREFIX}{layer}.lora_{which}.weight": ArrayTensor(array)
               for layer, pair in arrays.items() for which, array in zip("AB", pair, strict=True)}
    files = {WEIGHTS_FILE: tensors}
    if differences:
        files[DIFFERENCES_FILE] = {name: ArrayTensor(array.astype(np.float32)) for name, array in differences.items()}
    with atomic_folder(folder, overwrite) as temporary:
        (temporary / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for name, stored in files.items():
            write_file(temporary / name, stored, {"format": "pt"})
    return [folder / CONFIG_FILE, *(folder / name for name in files)]


def sizes_of(adapter: StoredAdapter, rename: Callable[[str], str]) -> dict[str, Any]:
    """PEFT's r, lora_alpha, rank_pattern and alpha_pattern of a StoredAdapter, its layers called `rename(layer)`."""
    ranks = {layer: len(a) for layer, (a, _) in adapter.pairs.items()}
    alphas = {layer: adapter.scalings[layer] * rank for layer, rank in ranks.items()}
    # Multiplying and dividing by the rank can leave 63.99999.
    alphas = {layer: round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-9) else alpha
              for layer, alpha in alphas.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] if values else 1 for values in (ranks, alphas))
    patterns = ({f"^{re.escape(rename(layer))}": value for layer, value in values.items() if value != usual}
                for values, usual in ((ranks, rank), (alphas, alpha)))
    return {"r": rank, "lora_alpha": alpha, "rank_pattern": next(patterns), "alpha_pattern": next(patterns)}


def read_adapter(folder: str | os.PathLike) -> tuple[LoRAConfig, Mapping[str, Pair]]:
    """(LoRAConfig, {layer: (A, B)}) of an adapter that can be trained on, arrays in fp32.

    Raises:
        FileNotFoundError: no adapter there.
        ValueError: as `read_stored_adapter`, or not the same rank and alpha everywhere.
    """
    adapter, content = read_stored_adapter(folder), read_config(folder)
    ranks, scalings = {len(a) for a, _ in adapter.pairs.values()}, set(adapter.scalings.values())
    if adapter.differences or len(ranks) != 1 or len(scalings) != 1:
        raise ValueError(f"{folder} can be used, not trained on: " + (
            "it holds more than pairs of A and B" if adapter.differences
            else f"ranks {sorted(ranks)}, factors {sorted(scalings)}; one of each is needed"))
    targets = content["target_modules"]
    targets = tuple(adapter.pairs) if isinstance(targets, str) or not targets else tuple(sorted(targets))
    rank = ranks.pop()
    return LoRAConfig(rank=rank, alpha=scalings.pop() * rank, targets=targets), adapter.pairs


def read_stored_adapter(folder: str | os.PathLike) -> StoredAdapter:
    """The StoredAdapter in a folder in PEFT's form, with the network's own names of layers.

    Raises:
        FileNotFoundError: no adapter there; what is there instead, and how to convert it, is said.
        ValueError: a file that is damaged, arrays without a partner, or something of PEFT that is not supported.
    """
    folder = Path(folder)
    if is_group(folder) and (problems := problems_of(folder.parent, group=folder.name)):
        raise ValueError(f"the adapter {folder} is refused: " + "; ".join(problems))
    return _adapter_of(folder, lambda tensor: tensor.numpy().astype(np.float32))


def check_adapter(folder: str | os.PathLike) -> None:
    """Raises what `read_stored_adapter` would for names, shapes and configuration; reads no weights."""
    _without_weights(folder)


def values_beside(folder: str | os.PathLike) -> int:
    """How many numbers the pairs beside linears hold, that is without those which are added to weights; raises as
    `check_adapter`."""
    pairs = _without_weights(folder).pairs.values()
    return sum(a.size + b.size for a, b in pairs if a.ndim == b.ndim == 2)


def _without_weights(folder: str | os.PathLike) -> StoredAdapter:
    """A folder's StoredAdapter, all its numbers 0 and without memory."""
    return _adapter_of(folder, lambda tensor: np.broadcast_to(np.float32(0), tensor.shape))


def _layers(folder: Path) -> dict[str, dict[str, StoredTensor]]:
    """{layer: {"A", "B", "bias": stored tensor}} of a folder's adapter."""
    layers: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in read_header(folder / WEIGHTS_FILE)[0].items():
        match = _NAME.fullmatch(name)
        if not match or (match[2], match[3]) not in _PARTS:
            raise ValueError(f"{folder / WEIGHTS_FILE} holds {name}; names must be {PREFIX}LAYER.lora_A.weight or "
                             f".lora_B.weight; {_conversion(folder)}")
        layers.setdefault(match[1], {})[_PARTS[match[2], match[3]]] = tensor
    return layers


def _adapter_of(origin: str | os.PathLike, read: Callable[[StoredTensor], np.ndarray]) -> StoredAdapter:
    """A folder's StoredAdapter; `read` makes an fp32 array of a stored tensor."""
    folder = Path(origin)
    content, beside = read_config(folder), folder / DIFFERENCES_FILE
    differences = read_header(beside)[0] if beside.is_file() else {}
    pairs, scalings, added = {}, {}, {name: read(tensor) for name, tensor in differences.items()}
    for layer, found in sorted(_layers(folder).items()):
        if missing := sorted({"A", "B"} - found.keys()):
            raise ValueError(f"{origin}: {layer} has no lora_{missing[0]}")
        a, b = read(found["A"]), read(found["B"])
        rank = rank_of(content, layer)
        if a.ndim < 2 or b.ndim < 2 or len(a) != b.shape[1] or len(a) != rank:
            raise ValueError(f"{origin}: {layer} has shapes {a.shape} and {b.shape}; the rank is {rank}")
        pairs[layer], scalings[layer] = (a, b), scaling_of(content, layer)
        if "bias" in found:
            added[f"{layer}.bias"] = scalings[layer] * read(found["bias"])
    return StoredAdapter(pairs, scalings, added)


def read_config(at: str | os.PathLike) -> Mapping[str, Any]:
    """The checked content of the adapter_config.json in a folder; raises as `read_stored_adapter`."""
    folder = Path(at)
    if folder.is_file():
        raise ValueError(f"{folder} is a file, an adapter here a folder in PEFT's form; {_conversion(folder)}")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            others = [path.name for path in sorted(folder.glob("*")) if path.suffix in (".safetensors", ".bin", ".pt")]
            hint = f"; {_conversion(folder)}" if others else f" {current_folder()}"
            if here := adapters_in(folder) or (adapters_in(folder.parent) if is_group(folder) else []):
                hint = f"; it is part of a training checkpoint, whose adapter is {here[-1]}"
            raise FileNotFoundError(f"no adapter in {folder}: {name} is missing{hint}")
    path = folder / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        refuse_pointer(path)
        raise ValueError(f"{path} is no adapter's configuration: {error!r}") from error
    return checked_config(content, path)


def checked_config(content: Any, origin: str | os.PathLike) -> Mapping[str, Any]:
    """`content`, PEFT's configuration of an adapter, if all it asks for is done here.

    Raises:
        ValueError: no such configuration, or what it asks for is not done (with what to do).
    """
    try:
        kind, rank, alpha, targets = (content[key] for key in ("peft_type", "r", "lora_alpha", "target_modules"))
        numbers = [rank, alpha, *(content.get("rank_pattern") or {}).values(),
                   *(content.get("alpha_pattern") or {}).values()]
        if not all(isinstance(number, int | float) and 0 < number < math.inf for number in numbers):
            raise ValueError(f"ranks and alphas must be numbers above 0, not {numbers}")
        names = [targets] if isinstance(targets, str) else targets
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"target_modules must be a pattern or a list of names, not {targets!r}")
        for pattern in (*(content.get("rank_pattern") or {}), *(content.get("alpha_pattern") or {})):
            re.compile(pattern)
    except (KeyError, TypeError, AttributeError, ValueError, re.error) as error:
        raise ValueError(f"{origin} is no adapter's configuration: {error!r}") from error
    odd = [f"{key} {content[key]!r}" for key, plain in _UNSUPPORTED.items()
           if content.get(key) not in (None, plain) and (content[key] or plain)]
    if kind != "LORA" or odd:
        raise ValueError(f"{origin} asks for what is not supported: "
                         + ", ".join(odd if kind == "LORA" else [f"peft_type {kind!r} (valid: 'LORA')"])
                         + "; merge it into the transformer with PEFT's merge_and_unload, and convert that with dit")
    return content


def rank_of(content: Mapping[str, Any], layer: str) -> int:
    """Rank of a layer by PEFT's configuration."""
    return _by_pattern(content.get("rank_pattern"), layer, content["r"])


def scaling_of(content: Mapping[str, Any], layer: str) -> float:
    """Factor of B A of a layer by PEFT's configuration: alpha / rank, or with use_rslora alpha / sqrt(rank)."""
    rank = rank_of(content, layer)
    alpha = _by_pattern(content.get("alpha_pattern"), layer, content["lora_alpha"])
    return alpha / (math.sqrt(rank) if content.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any] | None, layer: str, usual: Any) -> Any:
    """The value of the first pattern that fits the end of a layer's name, as PEFT looks it up."""
    return next((value for pattern, value in (patterns or {}).items()
                 if re.match(rf"(.*\.)?({pattern})$", layer)), usual)
