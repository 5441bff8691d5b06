"""The safetensors format, read and written in slices, without any framework.

A file is: length of the header (8 bytes, little endian), the header as JSON (name -> dtype, shape, data_offsets), the
tensors' bytes, row-major and little endian. The safetensors package writes whole tensors from memory; here nothing
larger than `CHUNK_BYTES` is held, so that a checkpoint of any size passes through a small machine.

A tensor, wherever it lives, has `dtype` (a key of DTYPE_BYTES), `shape`, `nbytes` and `chunks()`, an iterator over its
bytes in order.
"""

import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ospnext_ms.storage.files import atomic_folder, atomic_path, conversion, refuse_pointer

CHUNK_BYTES = 64 << 20
MAX_SHARD_BYTES = 5_000_000_000
INDEX_SUFFIX = ".index.json"
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}
_NUMPY_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}
_DTYPE_OF_NUMPY = {np.dtype(numpy_dtype): name for name, numpy_dtype in _NUMPY_DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000
# dtype, shape, first byte and the one after the last of a tensor, as a header has them.
Span = tuple[str, tuple[int, ...], int, int]


class TensorSource(Protocol):
    """What can be written: see the top of the file."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...

    def chunks(self) -> Iterable[bytes | memoryview]: ...


class TensorValues(Protocol):
    """What can be read as an array: bf16 as fp32, HiF8 decoded."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...

    def numpy(self) -> np.ndarray: ...


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a safetensors file; `offset` is where its first byte stands in the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    def chunks(self, limit: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Yields the tensor's bytes in order, at most `limit` at once. Raises EOFError where the file has shrunk."""
        left = self.nbytes
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset)
            while left:
                chunk = file.read(min(limit, left))
                if not chunk:
                    raise EOFError(f"{self.path} ended {left} bytes before the end of a tensor")
                left -= len(chunk)
                yield chunk

    def numpy(self) -> np.ndarray:
        """The tensor as an array of its own dtype; BF16 as float32, exactly (its bits are float32's upper half).

        Raises:
            ValueError: NumPy has no such dtype. EOFError: the file has shrunk.
        """
        if self.dtype == "BF16":
            array = np.empty(math.prod(self.shape), np.uint32)
            self._read_into(array, "<u2")
            array <<= 16
            return array.view(np.float32).reshape(self.shape)
        if self.dtype not in _NUMPY_DTYPES:
            raise ValueError(f"a {self.dtype} tensor in {self.path} cannot be read as an array")
        array = np.empty(math.prod(self.shape), _NUMPY_DTYPES[self.dtype])
        self._read_into(array, array.dtype)
        return array.reshape(self.shape)

    def _read_into(self, array: np.ndarray, stored_dtype: np.dtype | str) -> None:
        position, rest = 0, b""
        for chunk in self.chunks():
            chunk = rest + chunk
            whole = len(chunk) - len(chunk) % np.dtype(stored_dtype).itemsize
            values = np.frombuffer(chunk[:whole], stored_dtype)
            array[position : position + len(values)] = values
            position, rest = position + len(values), chunk[whole:]


class ArrayTensor:
    """A NumPy array as something to write; ValueError for a dtype that safetensors has not."""

    def __init__(self, array: np.ndarray):
        if array.dtype not in _DTYPE_OF_NUMPY:
            raise ValueError(f"arrays of dtype {array.dtype} cannot be stored; valid: {', '.join(_NUMPY_DTYPES)}")
        self.array = array
        self.dtype, self.shape, self.nbytes = _DTYPE_OF_NUMPY[array.dtype], array.shape, array.nbytes

    def chunks(self) -> Iterator[memoryview]:
        """The array's bytes in row-major order."""
        yield np.ascontiguousarray(self.array).reshape(-1).view(np.uint8).data


def read_header(path: str | os.PathLike) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Reads one safetensors file's header: the tensors by name, in stored order, and the metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file (a git LFS pointer is called that), or shorter or longer than its header
            says.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 9 or not 2 <= length <= _MAX_HEADER_BYTES or file.read(1) != b"{":
            refuse_pointer(path)
            hint = f"; {conversion(path)}" if path.suffix in TORCH_SUFFIXES else ""
            raise ValueError(f"{path} is not a safetensors file ({size} bytes, no header found){hint}")
        if size < 8 + length:
            raise ValueError(f"{path} is truncated: {size} bytes, its header alone takes {8 + length}")
        text = b"{" + file.read(length - 1)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        spans = {name: _parse_entry(entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a safetensors file: bad header ({error!r})") from error
    _check_spans(path, size - 8 - length, spans)
    ordered = sorted(spans.items(), key=lambda item: item[1][2:])
    return {name: StoredTensor(path, dtype, shape, 8 + length + start)
            for name, (dtype, shape, start, _) in ordered}, metadata


def _parse_entry(entry: dict) -> Span:
    dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"unknown dtype {dtype}")
    numbers = (*shape, start, stop)
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
        raise ValueError(f"bad shape {shape} or offsets {start}, {stop}")
    if stop - start != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise ValueError(f"{stop - start} bytes for {dtype} {shape}")
    return dtype, shape, start, stop


def _check_spans(path: Path, data_bytes: int, spans: Mapping[str, Span]) -> None:
    position = 0
    for name, (_, _, start, stop) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if start != position:
            raise ValueError(f"{path} is not a safetensors file: gap or overlap before {name}")
        position = stop
    if data_bytes != position:
        kind = "truncated" if data_bytes < position else "damaged"
        raise ValueError(f"{path} is {kind}: its tensors take {position} bytes, it holds {data_bytes}")


def read_index(path: str | os.PathLike) -> dict[str, list[str]]:
    """Reads an index of shards: file name (relative to the index) -> the names of the tensors it holds.

    Raises:
        ValueError: no index, or a shard outside the index's folder.
        FileNotFoundError: shards that are not there, all of them named.
    """
    path = Path(path)
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
        shards = {}
        for name, shard in weight_map.items():
            shards.setdefault(shard, []).append(name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        refuse_pointer(path)
        raise ValueError(f"{path} is not an index of shards: it needs a 'weight_map'") from error
    foreign = [shard for shard in shards if not isinstance(shard, str) or Path(shard).name != shard]
    if foreign:
        raise ValueError(f"{path} names shards outside its folder: {foreign[:5]}")
    missing = [shard for shard in shards if not (path.parent / shard).is_file()]
    if missing:
        raise FileNotFoundError(f"shards named by {path} are missing: {', '.join(sorted(missing))}")
    return shards


def check_shard(index: Path, shard: str, promised: Iterable[str], found: Iterable[str]) -> None:
    """Raises ValueError where a shard does not hold exactly what the index says."""
    promised, found = set(promised), set(found)
    if promised != found:
        raise ValueError(f"{index} and {shard} disagree: promised but not there {sorted(promised - found)[:5]}, "
                         f"there but not promised {sorted(found - promised)[:5]}")


def find_weights_file(folder: Path, suffixes: tuple[str, ...] = (".safetensors",)) -> Path:
    """The index of shards in a folder or, without one, its only weights file (hidden files do not count).

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: it holds several sets of them.
    """
    visible = sorted(entry for entry in Path(folder).iterdir() if entry.is_file() and not entry.name.startswith("."))
    indices = [entry for entry in visible if any(entry.name.endswith(s + INDEX_SUFFIX) for s in suffixes)]
    files = [entry for entry in visible if entry.suffix in suffixes]
    found = indices or files
    if not found:
        inner = ", ".join(sorted(entry.name for entry in Path(folder).iterdir() if entry.is_dir())[:10])
        others = [entry.name for entry in visible if entry.suffix in TORCH_SUFFIXES]
        hint = f"; give one of its folders ({inner}) where the weights lie there" if inner else ""
        hint = f" but {others[0]}; {conversion(folder)}" if others else hint
        raise FileNotFoundError(f"no {' or '.join(suffixes)} file in {folder}{hint}")
    if len(found) > 1:
        raise ValueError(f"several sets of weights in {folder}, give one of them or an index of the shards: "
                         f"{', '.join(entry.name for entry in found[:10])}")
    return found[0]


def plan_shards(tensors: Mapping[str, TensorSource], max_shard_bytes: float = MAX_SHARD_BYTES) -> list[list[str]]:
    """Cuts the names, in order, into shards of at most `max_shard_bytes` (from 1; ValueError below); a larger tensor
    has a shard to itself."""
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}; it must be at least 1")
    shards, size = [[]], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def write_file(path: str | os.PathLike, tensors: Mapping[str, TensorSource], metadata: Mapping[str, str] | None = None,
               progress: Callable[[int], object] = lambda written: None) -> None:
    """Writes one safetensors file in slices, atomically; an existing file is replaced. `progress` gets bytes written.

    Tensors of larger elements stand first, so that every one is aligned to its own element size, which readers that
    map the file need. Raises OSError as open() and write() do; whatever is raised, no partial file stays behind.
    """
    ordered = sorted(tensors.items(), key=lambda item: -DTYPE_BYTES[item[1].dtype])
    header: dict[str, dict] = {"__metadata__": dict(metadata or {})}
    position = 0
    for name, tensor in ordered:
        stop = position + tensor.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, open(temporary, "wb", buffering=0) as file:
        _write_all(file, len(text).to_bytes(8, "little") + text)
        for name, tensor in ordered:
            written = 0
            for chunk in tensor.chunks():
                _write_all(file, chunk)
                written += len(chunk)
                progress(len(chunk))
            assert written == tensor.nbytes, f"{name}: {written} of {tensor.nbytes} bytes"


def _write_all(file: io.RawIOBase, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view):]


def write_checkpoint(path: str | os.PathLike, tensors: Mapping[str, TensorSource],
                     max_shard_bytes: float = MAX_SHARD_BYTES, *, overwrite: bool = False, stem: str = "model",
                     metadata: Mapping[str, str] | None = None, extra_files: Mapping[str, bytes] | None = None,
                     progress: Callable[[int], object] = lambda written: None) -> list[str]:
    """Writes a checkpoint atomically: one file of any size where `path` ends in .safetensors, else a folder with
    shards, `STEM.safetensors.index.json` and the `extra_files` (which a single file has no place for).

    Returns the names of the safetensors files.

    Raises:
        FileExistsError: `path` exists and `overwrite` is not set, or it is a folder that holds something else.
    """
    path = Path(path)
    check_target(path, overwrite)
    if path.suffix == ".safetensors":
        write_file(path, tensors, metadata, progress)
        return [path.name]
    shards = plan_shards(tensors, max_shard_bytes)
    files = [f"{stem}.safetensors"]
    if len(shards) > 1:
        files = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1)
    with atomic_folder(path, overwrite) as temporary:
        for file, names in zip(files, shards, strict=True):
            write_file(temporary / file, {name: tensors[name] for name in names}, metadata, progress)
        for name, content in {f"{stem}.safetensors{INDEX_SUFFIX}": index.encode(), **(extra_files or {})}.items():
            (temporary / name).write_bytes(content)
    return files


def check_target(path: Path, overwrite: bool) -> None:
    """Raises FileExistsError where `write_checkpoint` would, before anything is read or written.

    Replacing a folder deletes what is in it, so only a folder that looks like a checkpoint is ever replaced.
    """
    if not path.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{path} already exists")
    is_file_target = path.suffix in (".safetensors", ".pth")
    if is_file_target == path.is_dir():
        raise FileExistsError(f"{path} exists and is a {'folder' if path.is_dir() else 'file'}: it is not replaced")
    if path.is_dir():
        foreign = [entry.name for entry in sorted(path.iterdir())
                   if not entry.name.endswith((".safetensors", ".safetensors" + INDEX_SUFFIX, "config.json"))]
        if foreign:
            raise FileExistsError(f"{path} holds more than a checkpoint and is not replaced: {', '.join(foreign[:5])}")
