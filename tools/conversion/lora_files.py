"""Opens an adapter in whatever form it is found, and finds out how strong it is meant to be.

What is added to a weight is alpha / rank * B A. The rank is that of the matrices; alpha is said by a tensor beside
every layer (kohya, ComfyUI), by PEFT's adapter_config.json, by the same in the header (diffusers) or by one number
there (kohya). Where nothing says it, it is asked for: what is taken for granted then makes an adapter half or twice as
strong as it was trained.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ospnext_ms.storage.adapters import StoredAdapter
from ospnext_ms.storage.peft_format import (
    CONFIG_FILE,
    DIFFERENCES_FILE,
    WEIGHTS_FILE,
    checked_config,
    rank_of,
    scaling_of,
)
from ospnext_ms.storage.safetensors_io import read_header
from tools.conversion import float8
from tools.conversion.lora_names import recognise
from tools.conversion.quantised import numbers
from tools.conversion.source import find_weights, read_file
from tools.conversion.state_dicts import choose

# Files of an adapter's folder, by what writes them: PEFT, an older PEFT or OSP-Next's authors, diffusers.
_FILES = (WEIGHTS_FILE, "adapter_model.bin", "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
# diffusers' header: PEFT's configuration as JSON, its keys as in the file's names of tensors.
HEADER_KEY, HEADER_PREFIX = "lora_adapter_metadata", "transformer."
_DIFFERENCES = {"weight difference": "weight", "bias difference": "bias", "modulation difference": "modulation"}


@dataclass(frozen=True)
class OpenedAdapter:
    """An adapter, where its strength was found, and {reason: names} of what its file holds besides."""

    path: Path
    adapter: StoredAdapter
    strength_from: str
    left_out: dict


def open_adapter(source, alpha=None, key=None):
    """The OpenedAdapter of a folder or file.

    Args:
        alpha: a number, or "rank" for that of every layer; it rules over what the file says. key: which of several
            state dictionaries of a PyTorch file.

    Raises:
        FileNotFoundError: no adapter there.
        ValueError: parts that are unknown or have no partner, several state dictionaries without a key, or a strength
            that is not said or said in two ways.
    """
    path = _find(Path(source))
    found, others = read_file(path)
    tensors, left_out = choose(path, found, key)
    if others:
        left_out["no weights"] = others
    layers, differences, own_names = _parts(path, tensors, left_out)
    if not layers and not differences:
        raise ValueError(f"{path} holds no adapter")
    statements = _Statements(path, alpha)
    pairs, scalings, origins = {}, {}, {}
    for layer, parts in sorted(layers.items()):
        a, b = _pair(path, layer, parts)
        pairs[layer] = a, b
        scalings[layer], origin = statements.scaling(layer, own_names[layer], len(a), parts.get("alpha"))
        origins.setdefault(origin, []).append(layer)
        if "bias" in parts:
            differences[f"{layer}.bias"] = differences.get(f"{layer}.bias", 0) + scalings[layer] * parts["bias"]
    statements.check()
    beside = path.parent / DIFFERENCES_FILE
    if path.name == WEIGHTS_FILE and beside.is_file():
        differences |= {name: tensor.numpy().astype(np.float32) for name, tensor in read_header(beside)[0].items()}
    return OpenedAdapter(path, StoredAdapter(pairs, scalings, differences), ", ".join(origins), left_out)


def _find(source):
    if not source.exists():
        raise FileNotFoundError(f"no adapter at {source}")
    return source if source.is_file() else find_weights(source, _FILES)


def _parts(path, tensors, left_out):
    """({layer: {part: array}}, {parameter: array}, {layer: its own name}) of an adapter's tensors."""
    layers, differences, own_names = {}, {}, {}
    is_whole = any(".base_layer." in name for name in tensors)
    stored = float8.dequantise(tensors)[0]
    for name, tensor in stored.items():
        if is_whole and not any(mark in name for mark in ("lora_", ".alpha")):
            left_out.setdefault("weights of the transformer itself", []).append(name)
            continue
        try:
            layer, part, own = recognise(name)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if part in _DIFFERENCES:
            where, known = differences, f"{layer}.{_DIFFERENCES[part]}"
        else:
            where, known = layers.setdefault(layer, {}), part
            own_names[layer] = own
        if known in where:
            raise ValueError(f"{path} holds {known} of {layer} twice, the second time as {name}")
        where[known] = _array(tensor)
    return layers, differences, own_names


def _array(tensor):
    """Any stored tensor as an fp32 array."""
    return np.concatenate([np.zeros(0, np.float32), *numbers(tensor)]).reshape(tensor.shape)


def _pair(path, layer, parts):
    if missing := sorted({"A", "B"} - parts.keys()):
        names = {"A": "lora_A or lora_down", "B": "lora_B or lora_up"}
        raise ValueError(f"{path}: {layer} has no {names[missing[0]]}")
    a, b = parts["A"], parts["B"]
    if a.ndim < 2 or b.ndim < 2 or b.shape[1] != len(a):
        raise ValueError(f"{path}: {layer} has A {a.shape} and B {b.shape}; expected [rank, in] and [out, rank]")
    return a, b


class _Statements:
    """What a file, its header, the configuration beside it and the user say about an adapter's strength."""

    def __init__(self, path, alpha):
        self.path, self.alpha = path, alpha
        self.metadata = read_header(path)[1] if path.suffix == ".safetensors" else {}
        self.configs = {}
        beside = path.parent / CONFIG_FILE
        if path.stem == Path(WEIGHTS_FILE).stem and beside.is_file():
            self.configs[CONFIG_FILE] = checked_config(_json(beside.read_bytes(), beside), beside)
        if HEADER_KEY in self.metadata:
            origin = f"{HEADER_KEY} of {path}"
            self.configs[HEADER_KEY] = checked_config(_without_prefix(_json(self.metadata[HEADER_KEY], origin)), origin)
        self.silent, self.contradicted = [], []

    def scaling(self, layer, own_name, rank, tensor):
        """(factor of B A, what says it) of a layer; 1 where nothing does, which `check` complains about."""
        if self.alpha is not None:
            return (1.0 if self.alpha == "rank" else float(self.alpha) / rank), f"--alpha {self.alpha}"
        said = {"alpha tensors": float(tensor.reshape(-1)[0]) / rank} if tensor is not None and tensor.size else {}
        for name, content in self.configs.items():
            if rank_of(content, own_name) == rank:
                said[name] = scaling_of(content, own_name)
            else:
                self.contradicted.append(f"{layer} has rank {rank}, {name} says {rank_of(content, own_name)}")
        if not said and _is_number(self.metadata.get("ss_network_alpha")):
            said["ss_network_alpha"] = float(self.metadata["ss_network_alpha"]) / rank
        if not said:
            self.silent.append((layer, rank))
            return 1.0, "nothing"
        values = list(said.values())
        if not all(math.isclose(value, values[0], rel_tol=1e-4) for value in values):
            self.contradicted.append(f"the factor of {layer} is " + ", ".join(
                f"{value:g} by {name}" for name, value in said.items()))
        return values[0], next(iter(said))

    def check(self):
        """ValueError where nothing says how strong a layer is, or two things say it differently."""
        if self.contradicted:
            raise ValueError(f"{self.path} contradicts itself, say with --alpha what holds: "
                             + "; ".join(self.contradicted[:3]))
        if self.silent:
            ranks = sorted({rank for _, rank in self.silent})
            raise ValueError(
                f"{self.path} does not say how strong it is ({len(self.silent)} layers have no alpha tensor, and there "
                f"is no {CONFIG_FILE}, {HEADER_KEY} or ss_network_alpha): give --alpha NUMBER as it was trained, or "
                f"--alpha rank (here {', '.join(map(str, ranks[:5]))}), which is what ComfyUI and diffusers take then; "
                "OSP-Next's authors train rank 32 with --alpha 64")


def _json(text, origin):
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{origin} is no configuration: expected an object")
    return content


def _without_prefix(content):
    """Keys of a pipeline's adapter begin with the name of its part, those of a transformer's do not."""
    inner = {key.removeprefix(HEADER_PREFIX): value for key, value in content.items() if key.startswith(HEADER_PREFIX)}
    return {"peft_type": "LORA", **(inner or content)}


def _is_number(text):
    try:
        return math.isfinite(float(text)) and float(text) > 0
    except (TypeError, ValueError):
        return False
