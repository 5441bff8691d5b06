"""Converts LoRA adapters between the forms in which they are found, and merges them into a transformer's weights.

Ours is PEFT's own form with the original layer names (see ospnext_ms.storage.peft_format); what else is read is in
lora_names and lora_files.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ospnext_ms.storage.adapters import StoredAdapter, low_rank_product
from ospnext_ms.storage.open_weights import read_headers
from ospnext_ms.storage.peft_format import sizes_of, write_stored_adapter
from ospnext_ms.storage.safetensors_io import ArrayTensor, check_target, write_checkpoint, write_file
from ospnext_ms.storage.weights import bfloat16_bits
from tools.conversion.lora_files import HEADER_KEY, HEADER_PREFIX, OpenedAdapter, open_adapter
from tools.conversion.names import to_naming


@dataclass(frozen=True)
class LoRASummary:
    """What a conversion did."""

    opened: OpenedAdapter
    target: Path
    merged: bool

    def __str__(self):
        adapter = self.opened.adapter
        ranks = sorted({len(a) for a, _ in adapter.pairs.values()})
        factors = sorted(set(adapter.scalings.values()))
        lines = [
            f"lora: {self.opened.path} {'merged into the weights at' if self.merged else '->'} {self.target}",
            f"  {len(adapter.pairs)} layers, rank {_listed(ranks)}, alpha / rank {_listed(factors)} by "
            f"{self.opened.strength_from}",
        ]
        if adapter.differences:
            lines.append(f"  {len(adapter.differences)} differences of weights, biases, norms or modulation")
        for reason, names in self.opened.left_out.items():
            lines.append(f"  left out, {reason} ({len(names)}): {', '.join(names[:3])}{' ...' if names[3:] else ''}")
        return "\n".join(lines)


def _listed(values):
    return ", ".join(f"{value:g}" for value in values[:5]) + (" ..." if values[5:] else "")


def convert_lora(source, target, direction="torch-to-mindspore", *, target_naming="original", overwrite=False,
                 alpha=None, key=None):
    """Converts an adapter: to PEFT's folder, or with `target_naming="diffusers"` to a single file in diffusers' names.

    `alpha` and `key`: see lora_files.open_adapter.

    Raises:
        FileNotFoundError, FileExistsError: no source, or a target that is there already.
        ValueError: see open_adapter; options that do not fit, or what the target's form cannot hold.
    """
    source, target = Path(source), Path(target)
    if target_naming == "diffusers" and (direction != "mindspore-to-torch" or target.suffix != ".safetensors"):
        raise ValueError("diffusers' names go with --direction mindspore-to-torch and a .safetensors file as target")
    if target_naming == "original" and target.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        raise ValueError(f"target is {target.name}; an adapter in PEFT's form is a folder")
    opened = open_adapter(source, alpha, key)
    if target_naming == "original":
        write_stored_adapter(target, opened.adapter, overwrite)
    else:
        check_target(target, overwrite)
        write_file(target, *_for_diffusers(opened.adapter))
    return LoRASummary(opened, target, False)


def merge_lora(source, base, target, *, overwrite=False, alpha=None, key=None):
    """Writes the transformer at `base` (original names) with the adapter at `source` added to its weights.

    dtypes stay those of `base`. A checkpoint of a HiF8 run holds weights in higher precision, which are quantised when
    they are used, so this is the merge for it too; unmerged, the adapter stays exact beside the quantised weight, and
    the two differ by HiF8's rounding. One whose matrices are stored in 8 bits is refused.

    Raises:
        ValueError: layers that the base does not have, or whose shapes or dtypes do not fit; see open_adapter.
    """
    opened = open_adapter(Path(source), alpha, key)
    stored = read_headers(base)
    check_target(Path(target), overwrite)
    adapter, problems, tensors = opened.adapter, [], dict(stored)
    changed = {f"{layer}.weight": layer for layer in adapter.pairs} | {name: None for name in adapter.differences
                                                                       if name.removesuffix(".weight")
                                                                       not in adapter.pairs}
    for name, layer in changed.items():
        merged = _Merged(stored.get(name), adapter, name, layer)
        if problem := merged.problem():
            problems.append(problem)
        tensors[name] = merged
    if problems:
        raise ValueError(f"{source} does not fit {base} ({len(problems)} tensors): " + "; ".join(problems[:5]))
    config = Path(base) / "config.json"
    write_checkpoint(target, tensors, overwrite=overwrite, metadata={"format": "np"},
                     extra_files={"config.json": config.read_bytes()} if config.is_file() else None)
    return LoRASummary(opened, Path(target), True)


class _Merged:
    """A stored parameter and what an adapter adds to it, computed when its turn to be written comes."""

    def __init__(self, tensor, adapter, name, layer):
        self._tensor, self._adapter, self._name, self._layer = tensor, adapter, name, layer
        if tensor is not None:
            self.dtype, self.shape, self.nbytes = tensor.dtype, tensor.shape, tensor.nbytes

    def problem(self):
        """What does not fit, or None."""
        difference = self._adapter.differences.get(self._name)
        wanted = difference.shape if difference is not None else ()
        if self._layer:
            a, b = self._adapter.pairs[self._layer]
            wanted = (*b.shape[:1], *a.shape[1:])
        if self._tensor is None or self.dtype not in ("F32", "F16", "BF16") or np.prod(wanted) != np.prod(self.shape) \
                or len(wanted) == len(self.shape) and wanted != self.shape:
            found = "nothing" if self._tensor is None else f"{self.dtype} {self.shape}"
            return f"{self._name} is {found} instead of floats {wanted}"
        return None

    def chunks(self):
        """The bytes, rounded to the stored dtype."""
        total = self._tensor.numpy().astype(np.float64)
        if self._layer:
            a, b = self._adapter.pairs[self._layer]
            total += low_rank_product(a, b, self._adapter.scalings[self._layer]).reshape(total.shape)
        if self._name in self._adapter.differences:
            total += self._adapter.differences[self._name].reshape(total.shape)
        merged = total.astype(np.float32)
        if self.dtype == "BF16":
            merged = bfloat16_bits(merged)
        elif self.dtype == "F16":
            merged = merged.astype(np.float16)
        yield from ArrayTensor(merged).chunks()


def _for_diffusers(adapter):
    """(tensors, header's metadata) in diffusers' names: the factors are part of B, so that readers without the header
    (ComfyUI, older versions of diffusers) add the same as those with it.
    """
    if adapter.differences:
        raise ValueError(f"diffusers' form has no place for {len(adapter.differences)} differences of parameters "
                         f"({', '.join(list(adapter.differences)[:3])}): merge with --merge-into, and convert the "
                         "merged transformer with dit")
    scaled = StoredAdapter({layer: (a, (adapter.scalings[layer] * b.astype(np.float64)).astype(np.float32))
                            for layer, (a, b) in adapter.pairs.items()}, dict.fromkeys(adapter.pairs, 1.0))

    def called(layer):
        return to_naming("dit", layer, "diffusers")

    tensors = {f"{HEADER_PREFIX}{called(layer)}.lora_{which}.weight": ArrayTensor(array)
               for layer, pair in scaled.pairs.items() for which, array in zip("AB", pair, strict=True)}
    content = {"peft_type": "LORA", **sizes_of(scaled, called), "target_modules": list(map(called, scaled.pairs))}
    header = json.dumps({HEADER_PREFIX + name: value for name, value in content.items()}, sort_keys=True)
    return tensors, {"format": "pt", HEADER_KEY: header}
