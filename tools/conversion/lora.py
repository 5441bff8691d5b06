"""Converts LoRA adapters between the forms in which they are found, and merges them into a transformer's weights.

Ours is PEFT's own form with the original layer names (see ospnext_ms.storage.peft_format). Others are a single file
in the names of diffusers (transformer.blocks.0.attn1.to_q.lora_A.weight) or of the original code
(diffusion_model.blocks...), with lora_down and lora_up for A and B, and with or without a tensor `alpha` for every
layer.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ospnext_ms.models.lora_config import LoRAConfig, merged_weight
from ospnext_ms.storage.open_weights import read_headers
from ospnext_ms.storage.peft_format import WEIGHTS_FILE, read_adapter, write_adapter
from ospnext_ms.storage.safetensors_io import ArrayTensor, check_target, read_header, write_checkpoint, write_file
from ospnext_ms.storage.weights import bfloat16_bits
from tools.conversion.names import to_naming

_PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.", "model.diffusion_model.")
_PARTS = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_down.weight": "A", "lora_up.weight": "B",
          "lora_A.default.weight": "A", "lora_B.default.weight": "B", "alpha": "alpha"}
_LAYER = re.compile(r"blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])")


@dataclass(frozen=True)
class LoRASummary:
    """What a conversion did."""

    source: Path
    target: Path
    layers: int
    config: LoRAConfig
    merged: bool

    def __str__(self):
        what = "merged into the weights at" if self.merged else "->"
        return (f"lora: {self.source} {what} {self.target}\n  {self.layers} layers, rank {self.config.rank}, alpha "
                f"{self.config.alpha:g}, targets {', '.join(self.config.targets)}")


def convert_lora(source, target, direction="torch-to-mindspore", *, target_naming="original", overwrite=False):
    """Converts an adapter: to PEFT's folder, or with `target_naming="diffusers"` to a single file in diffusers' names.

    Raises:
        FileNotFoundError, FileExistsError: no source, or a target that is there already.
        ValueError: layers that the transformer does not have (named), ranks that differ, or options that do not fit.
    """
    source, target = Path(source), Path(target)
    if target_naming == "diffusers" and (direction != "mindspore-to-torch" or target.suffix != ".safetensors"):
        raise ValueError("diffusers' names go with --direction mindspore-to-torch and a .safetensors file as target")
    if target_naming == "original" and target.suffix:
        raise ValueError(f"target is {target.name}; an adapter in PEFT's form is a folder")
    config, arrays = open_adapter(source)
    if target_naming == "original":
        write_adapter(target, config, arrays, overwrite)
    else:
        check_target(target, overwrite)
        write_file(target, _in_diffusers_names(config, arrays), {"format": "pt"})
    return LoRASummary(source, target, len(arrays), config, False)


def merge_lora(source, base, target, *, overwrite=False):
    """Writes the transformer at `base` (original names) with the adapter at `source` added to its weights.

    dtypes stay those of `base`. A checkpoint of a HiF8 run holds weights in higher precision, which are quantised when
    they are used, so this is the merge for it too; unmerged, the adapter stays exact beside the quantised weight, and
    the two differ by HiF8's rounding. One whose matrices are stored in 8 bits is refused.

    Raises:
        ValueError: layers that the base does not have, or whose shapes or dtypes do not fit.
    """
    config, arrays = open_adapter(Path(source))
    stored = read_headers(base)
    check_target(Path(target), overwrite)
    problems = []
    for layer, (a, b) in arrays.items():
        weight = stored.get(f"{layer}.weight")
        if weight is None or weight.shape != (b.shape[0], a.shape[1]) or weight.dtype not in ("F32", "F16", "BF16"):
            found = "nothing" if weight is None else f"{weight.dtype} {weight.shape}"
            problems.append(f"{layer}.weight is {found} instead of floats {(b.shape[0], a.shape[1])}")
    if problems:
        raise ValueError(f"{source} does not fit {base} ({len(problems)} layers): " + "; ".join(problems[:5]))
    tensors = {name: _Merged(tensor, *arrays[name.removesuffix(".weight")], config)
               if name.removesuffix(".weight") in arrays else tensor for name, tensor in stored.items()}
    write_checkpoint(target, tensors, overwrite=overwrite, metadata={"format": "np"})
    return LoRASummary(Path(source), Path(target), len(arrays), config, True)


class _Merged:
    """A stored weight with its adapter, computed when its turn to be written comes."""

    def __init__(self, tensor, a, b, config):
        self._arguments = tensor, a, b, config
        self.dtype, self.shape, self.nbytes = tensor.dtype, tensor.shape, tensor.nbytes

    def chunks(self):
        """The bytes, rounded to the stored dtype."""
        tensor, a, b, config = self._arguments
        merged = merged_weight(tensor.numpy(), a, b, config)
        if self.dtype == "BF16":
            merged = bfloat16_bits(merged)
        elif self.dtype == "F16":
            merged = merged.astype(np.float16)
        yield from ArrayTensor(merged).chunks()


def open_adapter(source):
    """(LoRAConfig, {original layer name: (A, B)}) of a PEFT folder or of a single file in a known naming."""
    if source.is_dir() and (source / WEIGHTS_FILE).is_file():
        config, arrays = read_adapter(source)
        arrays = {_original_layer(layer, source): pair for layer, pair in arrays.items()}
        return LoRAConfig(rank=config.rank, alpha=config.alpha, targets=_targets(arrays)), arrays
    if source.is_dir():
        raise FileNotFoundError(f"no adapter in {source}: expected {WEIGHTS_FILE} and its configuration")
    if not source.is_file():
        raise FileNotFoundError(f"no adapter at {source}")
    return _open_file(source)


def _open_file(source):
    layers = {}
    for name, tensor in read_header(source)[0].items():
        part = next((ending for ending in _PARTS if name.endswith(f".{ending}")), None)
        if part is None:
            raise ValueError(f"{source} holds {name}, which is no part of a LoRA; parts: {', '.join(_PARTS)}")
        layer = name.removesuffix(f".{part}")
        layers.setdefault(_original_layer(layer, source), {})[_PARTS[part]] = tensor.numpy().astype(np.float32)
    broken = [layer for layer, parts in layers.items() if not {"A", "B"} <= parts.keys()]
    if broken:
        raise ValueError(f"{source}: A or B is missing of {', '.join(broken[:5])}")
    ranks = {parts["A"].shape[0] for parts in layers.values()}
    alphas = {float(parts.get("alpha", np.array(parts["A"].shape[0])).reshape(-1)[0]) for parts in layers.values()}
    if len(ranks) != 1 or len(alphas) != 1:
        raise ValueError(f"{source} has ranks {sorted(ranks)} and alphas {sorted(alphas)}; one of each is supported")
    arrays = {layer: (parts["A"], parts["B"]) for layer, parts in sorted(layers.items())}
    return LoRAConfig(rank=ranks.pop(), alpha=alphas.pop(), targets=_targets(arrays)), arrays


def _original_layer(layer, source):
    for prefix in sorted(_PREFIXES, key=len, reverse=True):
        layer = layer.removeprefix(prefix)
    block = re.match(r"blocks\.\d+\.", layer)
    if block and not _LAYER.fullmatch(layer):
        for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k",
                     "cross_attn.v", "cross_attn.o", "ffn.0", "ffn.2"):
            if to_naming("dit", block[0] + name, "diffusers") == layer:
                return block[0] + name
    if not _LAYER.fullmatch(layer):
        raise ValueError(f"{source} has an adapter on {layer}, which is no linear layer of a transformer block")
    return layer


def _targets(arrays):
    """The shortest list of names that fits exactly these layers of a block."""
    return tuple(sorted({re.sub(r"^blocks\.\d+\.", "", layer) for layer in arrays}))


def _in_diffusers_names(config, arrays):
    tensors = {}
    for layer, (a, b) in arrays.items():
        name = "transformer." + to_naming("dit", layer, "diffusers")
        tensors |= {f"{name}.lora_A.weight": ArrayTensor(a), f"{name}.lora_B.weight": ArrayTensor(b),
                    f"{name}.alpha": ArrayTensor(np.array(config.alpha, np.float32))}
    return tensors
