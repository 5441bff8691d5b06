"""The conversion itself: find out what the checkpoint is, check every name and shape, then copy the bytes."""

import errno
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ospnext_ms.config.yaml_files import read_values
from ospnext_ms.models.parameters import KINDS, expected_shapes
from ospnext_ms.storage.safetensors_io import MAX_SHARD_BYTES, check_target, write_checkpoint
from ospnext_ms.storage.weights import mismatch_report
from tools.conversion import float8, quantised
from tools.conversion.describe import config_json
from tools.conversion.names import NAMINGS, detect_naming, drop_superfluous, to_naming
from tools.conversion.sizes import SECTIONS, infer_sizes, sizes_from_config
from tools.conversion.source import open_source
from tools.conversion.torch_file import write_torch_file

DIRECTIONS = ("torch-to-mindspore", "mindspore-to-torch")
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Summary:
    """What a conversion did; `dropped` is the names left out on purpose, by reason, `dequantised` says what was."""

    kind: str
    source: Path
    target: Path
    source_naming: str
    target_naming: str
    sizes: Mapping
    sizes_origin: str
    dtypes: Mapping[str, int]
    nbytes: int
    files: list
    dropped: Mapping[str, list]
    hif8_errors: Mapping[str, float]
    dequantised: str | None
    about_config: str | None

    def __str__(self):
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())
        lines = [
            f"{self.kind}: {self.source} ({self.source_naming} naming) -> {self.target} ({self.target_naming} naming)",
            f"  sizes from {self.sizes_origin}: " + ", ".join(f"{key} {value}" for key, value in self.sizes.items()),
            f"  {sum(self.dtypes.values())} tensors ({dtypes}), {self.nbytes / 1e9:.3f} GB in {len(self.files)} "
            f"file{'s' if len(self.files) > 1 else ''}: {', '.join(self.files[:3])}"
            + (" ..." if len(self.files) > 3 else ""),
        ]
        if self.about_config:
            lines.append(f"  {self.about_config}")
        if self.dequantised:
            lines.append(f"  dequantised to bf16: {self.dequantised}")
        if self.hif8_errors:
            errors = sorted(self.hif8_errors.items(), key=lambda item: item[1])
            (best, low), (worst, high) = errors[0], errors[-1]
            lines.append(f"  HiF8: {len(errors)} tensors, relative error {low:.4f} ({best}) to {high:.4f} ({worst}), "
                         f"median {errors[len(errors) // 2][1]:.4f}")
        for reason, names in self.dropped.items():
            lines.append(f"  left out, {reason} ({len(names)}): {', '.join(names[:3])}{' ...' if names[3:] else ''}")
        return "\n".join(lines)


def convert(kind: str, source: Path, target: Path, direction: str = DIRECTIONS[0], *, target_naming: str = "original",
            config: Path | None = None, overwrite: bool = False, quant: str | None = None, key: str | None = None,
            max_shard_bytes: float = MAX_SHARD_BYTES, show_progress: bool = False) -> Summary:
    """Converts a checkpoint; nothing appears under `target` before it is complete. Dtypes stay, float8 becomes bf16.

    `target` is a folder (shards of at most `max_shard_bytes` with an index, and a config.json: the source's where the
    naming stays the same, else one as those who load the naming expect it), a .safetensors file or, towards PyTorch, a
    .pth file. `config` is a config.json or a run's YAML that gives the sizes; without it those of the source's
    config.json hold, and what neither says is read off the shapes. `quant` "hif8" stores the blocks' matrices of a
    transformer in 8 bits (ospnext_ms.storage.hif8_weights). `key` chooses among several sets of weights in one file.

    Raises:
        FileNotFoundError, FileExistsError, ImportError: see open_source and write_checkpoint.
        ValueError: missing, unexpected or misshapen tensors (listed), or options that do not go together.
        OSError: the disk is too small; what was written is removed.
    """
    _check_options(kind, target, direction, target_naming, quant)
    check_target(target, overwrite)
    opened = open_source(kind, source, key)
    stored, dequantised, of_float8 = float8.dequantise(opened.tensors)
    naming = detect_naming(kind, stored)
    tensors, dropped = drop_superfluous(kind, naming, stored)
    dropped = {**opened.left_out, **of_float8, **dropped}
    given = None if config is None else read_values(config)[0]
    sizes, origin = _find_sizes(kind, naming, opened, tensors, config, given)
    expected = expected_shapes(kind, sizes)
    _check_tensors(opened.path, kind, sizes, {to_naming(kind, name, naming): shape for name, shape in expected.items()},
                   tensors)
    renamed = {to_naming(kind, name, target_naming): tensors[to_naming(kind, name, naming)] for name in expected}
    codes, about_config = {}, None
    if quant:
        renamed, codes = quantised.quantise(renamed)
    total = sum(tensor.nbytes for tensor in renamed.values())
    _check_space(target, total)
    with tqdm(total=total, unit="B", unit_scale=True, disable=not show_progress, desc=kind) as bar:
        if target.suffix == ".pth":
            write_torch_file(target, renamed, bar.update)
            files = [target.name]
        else:
            towards_torch = direction == "mindspore-to-torch"
            described, about_config = _describe(kind, naming, target_naming, opened.config, given, sizes)
            files = write_checkpoint(
                target, renamed, max_shard_bytes, overwrite=overwrite, progress=bar.update,
                stem="diffusion_pytorch_model" if target_naming == "diffusers" and kind != "umt5" else "model",
                metadata={"format": "pt" if towards_torch else "np"},
                extra_files=None if described is None else {"config.json": json.dumps(described, indent=2).encode()},
            )
    dtypes = Counter(tensor.dtype for tensor in renamed.values())
    errors = {name: tensor.error for name, tensor in codes.items()}
    return Summary(kind, opened.path, target, naming, target_naming, sizes, origin, dtypes, total, files, dropped,
                   errors, dequantised, about_config if not target.suffix else None)


def _check_options(kind, target, direction, target_naming, quant):
    for name, value, valid in (("kind", kind, KINDS), ("direction", direction, DIRECTIONS),
                               ("target naming", target_naming, NAMINGS)):
        if value not in valid:
            raise ValueError(f"{name} is {value!r}; valid: {', '.join(valid)}")
    if quant not in (None, "hif8"):
        raise ValueError(f"quant is {quant!r}; valid: hif8")
    if quant and (kind != "dit" or direction != "torch-to-mindspore"):
        raise ValueError(f"quant {quant!r} goes with dit and torch-to-mindspore, not with {kind} and {direction}")
    if direction == "torch-to-mindspore":
        if target_naming != "original":
            raise ValueError("the MindSpore networks have the original names; another --target-naming goes with "
                             "--direction mindspore-to-torch")
        if target.suffix == ".pth":
            raise ValueError(f"MindSpore does not read {target.name}: give a folder or a .safetensors file, or "
                             "--direction mindspore-to-torch")
    if target.suffix in (".pt", ".bin", ".ckpt", ".json"):
        raise ValueError(f"cannot write {target.name}; valid: a folder, a .safetensors file, or towards PyTorch .pth")


def _find_sizes(kind, naming, opened, tensors, config, given):
    origin, known = "the tensors' shapes", {}
    if config is not None:
        known = sizes_from_config(kind, given)
        if not known:
            raise ValueError(f"{config} says nothing about a {kind}")
        origin = str(config)
    elif opened.config is not None:
        known = sizes_from_config(kind, opened.config) or {}
        origin = str(opened.path.parent / "config.json") if known else origin
    sizes = infer_sizes(kind, naming, {name: tensor.shape for name, tensor in tensors.items()}, known)
    return sizes, origin


def _describe(kind, naming, target_naming, own, given, sizes):
    """(content of the target's config.json or None, what to say about it or None)."""
    describes = own is not None and sizes_from_config(kind, own) is not None
    if describes and naming == target_naming and given is None:
        return own, None
    known = {**own} if describes else {}
    if given is not None:
        model = given.get("model")
        known |= model.get(SECTIONS[kind], {}) if isinstance(model, Mapping) else given
    return config_json(kind, target_naming, sizes, known)


def _check_tensors(path, kind, sizes, expected, tensors):
    report = mismatch_report(expected, {name: tensor.shape for name, tensor in tensors.items()})
    odd = [f"{name} {tensor.dtype}" for name, tensor in tensors.items() if tensor.dtype not in _FLOATS]
    if odd:
        report.append(f"no floating-point weights ({len(odd)}): {', '.join(odd[:10])}")
    if report:
        described = ", ".join(f"{key} {value}" for key, value in sizes.items())
        raise ValueError(f"{path} is not a complete {kind} ({described}), nothing was written:\n" + "\n".join(report))


def _check_space(target, nbytes):
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        message = f"{nbytes / 1e9:.1f} GB are to be written, {free / 1e9:.1f} GB are free"
        raise OSError(errno.ENOSPC, message, str(folder))
