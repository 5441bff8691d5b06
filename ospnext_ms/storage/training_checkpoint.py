"""What a training checkpoint looks like on the disk, and how it is checked and read. No framework is needed.

    step_00000100/
      manifest.json                        sizes and SHA-256 of all files, and where every tensor lies
      state.json                           everything that is not a tensor
      parameters/model.safetensors ...     one folder for each group of tensors: parameters, ema, moments ...
      adapter/ adapter_ema/                where adapters are trained, once more in PEFT's form (storage/peft_format.py)

A folder of a group that one process wrote is an ordinary checkpoint: any reader of safetensors loads it. Where several
processes hold parts of the tensors, each writes its own files, and the manifest says which values of which tensor lie
where; `read_group` puts them together whatever number of processes reads.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ospnext_ms.storage.files import atomic_path
from ospnext_ms.storage.safetensors_io import DTYPE_BYTES, StoredTensor, read_header

MANIFEST, STATE = "manifest.json", "state.json"
# Of a run that trains adapters: as trained, and their average.
ADAPTERS = ("adapter", "adapter_ema")
FORMAT = "ospnext_ms training checkpoint 1"
_STEP_FOLDER = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class Piece:
    """Consecutive values of a larger tensor, as one process holds them.

    `values` is [n], any layout flattened row-major; `shape` is the whole tensor's; `start` the index of the first value
    in the flattened whole. Pieces must cover every tensor exactly, so padding is cut off before.
    """

    values: np.ndarray
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: `groups` is {group: {name: tensor with dtype, shape, nbytes, chunks(), numpy()}}."""

    path: Path
    step: int
    state: dict
    groups: dict[str, dict[str, "StoredTensor | JoinedTensor"]] = field(repr=False)


@dataclass(frozen=True)
class JoinedTensor:
    """A tensor that lies in several files: ((start, StoredTensor), ...) by start, covering it exactly."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[tuple[int, StoredTensor], ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that it lies in."""
        return tuple(piece.path for _, piece in self.pieces)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    def chunks(self) -> Iterator[bytes]:
        """The tensor's bytes in row-major order."""
        for _, piece in self.pieces:
            yield from piece.chunks()

    def numpy(self) -> np.ndarray:
        """The whole tensor; bf16 as fp32."""
        return np.concatenate([piece.numpy().reshape(-1) for _, piece in self.pieces]).reshape(self.shape)


def step_folder(step: int) -> str:
    """Name of the checkpoint of a step."""
    return f"step_{step:08d}"


def step_of(path: str | os.PathLike) -> int | None:
    """Step of a checkpoint folder's name, None for any other name."""
    match = _STEP_FOLDER.fullmatch(Path(path).name)
    return int(match[1]) if match else None


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict]:
    """{name: {"size", "sha256"}} of files in a folder, read back from the disk."""
    described = {}
    for name in names:
        with open(folder / name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            described[name] = {"size": file.tell(), "sha256": digest}
    return described


def write_manifest(folder: Path, content: Mapping) -> None:
    """Writes the manifest of `content` (JSON values), with a checksum of its own."""
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_bytes(_manifest_bytes(content))


def _manifest_bytes(content: Mapping) -> bytes:
    digest = hashlib.sha256(_compact(content)).hexdigest()
    return _compact({"content": content, "sha256": digest})


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def read_manifest(path: str | os.PathLike) -> dict:
    """The manifest's content.

    Raises:
        FileNotFoundError: there is none, so the checkpoint is half-written. ValueError: it is damaged.
    """
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: the checkpoint was not finished")
    data = file.read_bytes()
    try:
        content = json.loads(data)["content"]
        intact = data == _manifest_bytes(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error!r}") from error
    if not intact:
        raise ValueError(f"{file} is damaged: its checksum does not fit")
    if content.get("format") != FORMAT:
        raise ValueError(f"{file} has the format {content.get('format')!r}; this version reads {FORMAT!r}")
    return content


def problems_of(path: str | os.PathLike, reader: int = 0, num_readers: int = 1, group: str | None = None) -> list[str]:
    """What is wrong with a checkpoint, or with one of its groups, one line a file; none where it is intact.

    Every file's size is compared, and the SHA-256 of every `num_readers`-th file from number `reader`, so that several
    processes can share the reading.
    """
    path = Path(path)
    try:
        files = read_manifest(path)["files"]
    except (OSError, ValueError) as error:
        return [str(error)]
    problems = []
    for i, (name, expected) in enumerate(sorted(files.items())):
        if group is not None and not name.startswith(f"{group}/"):
            continue
        file = path / name
        if not file.is_file():
            problems.append(f"{file} is missing")
        elif file.stat().st_size != expected["size"]:
            problems.append(f"{file} has {file.stat().st_size} bytes instead of {expected['size']}")
        elif i % num_readers == reader and describe_files(path, [name])[name]["sha256"] != expected["sha256"]:
            problems.append(f"{file} is damaged: its SHA-256 is not the one written")
    return problems


def open_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Opens a checkpoint without reading tensors and without hashing (see `problems_of`).

    Raises:
        FileNotFoundError, ValueError: it is incomplete, or its files do not hold what the manifest says (named).
    """
    path = Path(path)
    content = read_manifest(path)
    headers: dict[str, dict[str, StoredTensor]] = {}
    groups = {group: {name: _locate(path, name, entry, headers) for name, entry in tensors.items()}
              for group, tensors in content["tensors"].items()}
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    return Checkpoint(path, content["step"], state, groups)


def adapters_in(path: str | os.PathLike) -> list[Path]:
    """The adapters in PEFT's form in the folder of a checkpoint, that of the average last; none where weights were
    trained themselves."""
    folders = [Path(path) / name for name in ADAPTERS]
    return [folder for folder in folders if folder.is_dir()]


def is_group(path: str | os.PathLike) -> bool:
    """True for the folder of a group inside a training checkpoint."""
    path = Path(path)
    return path.is_dir() and step_of(path.parent) is not None


def read_group(path: str | os.PathLike) -> dict[str, StoredTensor | JoinedTensor]:
    """{name: tensor} of one group, given its folder (.../step_00000100/ema).

    Raises:
        FileNotFoundError: no such group (the existing ones are named). ValueError: the checkpoint is damaged, or is one
            of adapters, which are no network.
    """
    path = Path(path)
    groups = open_checkpoint(path.parent).groups
    if adapters := adapters_in(path.parent):
        raise ValueError(f"{path} holds adapters, no whole network: give the transformer that they were trained "
                         f"beside, and as adapter {adapters[-1]}")
    if path.name not in groups:
        raise FileNotFoundError(f"{path.parent} has no tensors called {path.name}; it has {', '.join(sorted(groups))}")
    return groups[path.name]


def _locate(path: Path, name: str, entry: dict,
            headers: dict[str, dict[str, StoredTensor]]) -> StoredTensor | JoinedTensor:
    pieces = []
    for file, start in entry["pieces"]:
        if file not in headers:
            headers[file] = read_header(path / file)[0]
        if name not in headers[file]:
            raise ValueError(f"{path / file} does not hold {name}, which the manifest promises")
        pieces.append((start, headers[file][name]))
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if len(pieces) == 1 and pieces[0][1].shape == shape:
        return pieces[0][1]
    return JoinedTensor(dtype, shape, _checked(path, name, shape, pieces))


def _checked(path: Path, name: str, shape: tuple[int, ...],
             pieces: list[tuple[int, StoredTensor]]) -> tuple[tuple[int, StoredTensor], ...]:
    """The pieces by start; ValueError where they do not cover the tensor exactly."""
    pieces = sorted(pieces, key=lambda piece: piece[0])
    position = 0
    for start, piece in pieces:
        if start != position:
            raise ValueError(f"{path}: {name} has a gap or an overlap at value {min(start, position)}")
        position += math.prod(piece.shape)
    if position != math.prod(shape):
        raise ValueError(f"{path}: {name} has {position} values instead of {math.prod(shape)}")
    return tuple(pieces)


def as_pieces(tensors: Mapping[str, np.ndarray | Piece]) -> dict[str, Piece]:
    """{name: Piece}, a whole array being a piece from 0 that keeps its shape."""
    return {name: value if isinstance(value, Piece) else Piece(value, value.shape, 0)
            for name, value in tensors.items()}


