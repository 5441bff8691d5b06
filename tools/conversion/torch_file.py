"""PyTorch's own file format (.pth, .pt, .bin), read without executing what is pickled in it and without loading it.

torch.load maps the file and gives names, dtypes and shapes; the bytes are then read from the file where the mapping
says they stand. Reading them through the mapping would count every page of it as this process's memory.
"""

import mmap
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ospnext_ms.storage.files import atomic_path, refuse_pointer
from ospnext_ms.storage.safetensors_io import CHUNK_BYTES, StoredTensor
from tools.conversion.state_dicts import find_state_dicts

SUFFIXES = (".pth", ".pt", ".bin")
# Older versions' weights_only could be tricked into executing code (CVE-2025-32434).
MINIMUM_TORCH = (2, 6)

_DTYPE_OF_TORCH = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
    "bool": "BOOL",
}
_TORCH_OF_DTYPE = {dtype: name for name, dtype in _DTYPE_OF_TORCH.items()}


def read_torch_file(path: Path) -> tuple[dict, list]:
    """({key: {name: tensor}}, [keys of all else]) of a .pth file: its state dictionaries, none of their tensors loaded.

    Raises:
        ImportError: PyTorch is not installed, or too old to be safe.
        ValueError: not a file that torch.save wrote since version 1.6, or without tensors by name.
    """
    refuse_pointer(path)
    torch = _import_torch(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a zip archive as torch.save writes it: damaged, truncated, or from a PyTorch "
                         "older than 1.6 (load and save it again with a newer one)")
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()
        hint = next((line for line in reason if "GLOBAL" in line or "class" in line), reason[0])
        raise ValueError(f"{path} holds pickled code or objects besides tensors; they are never executed or loaded: "
                         f"{hint.strip()}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{path} cannot be read by PyTorch: {error!r:.300}") from error
    try:
        found, others = find_state_dicts(content, torch.is_tensor)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    mapping = _find_mapping(path)
    return {key: {name: _locate(path, name, tensor, mapping) for name, tensor in state.items()}
            for key, state in found.items()}, others


def write_torch_file(path: Path, tensors: Mapping, progress=lambda written: None):
    """Writes tensors to a .pth file, atomically; an existing file is replaced.

    torch.save wants them all as tensors: those in files are mapped, and their pages given back as they are written.
    Since it takes a checksum of every tensor first, it still needs the memory of the largest one.
    """
    torch = _import_torch(path)
    maps, state = {}, {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _TORCH_OF_DTYPE:
            raise ValueError(f"{name} is {tensor.dtype}, which a .pth file cannot hold here")
        if isinstance(tensor, StoredTensor):
            if tensor.path not in maps:
                with open(tensor.path, "rb") as source:
                    maps[tensor.path] = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_COPY)
            array = np.frombuffer(maps[tensor.path], np.uint8, tensor.nbytes, tensor.offset)
        else:
            array = np.frombuffer(bytearray().join(tensor.chunks()), np.uint8)
        state[name] = torch.from_numpy(array).view(getattr(torch, _TORCH_OF_DTYPE[tensor.dtype])).view(tensor.shape)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save(state, _ReleasingFile(file, maps.values(), progress))


class _ReleasingFile:
    """A file to torch.save, in which what was written no longer counts as this process's memory."""

    def __init__(self, file, maps, progress):
        self._file, self._maps, self._progress = file, maps, progress

    def write(self, data):
        """Writes everything and returns its length in bytes, as torch.save expects."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK_BYTES):
            self._progress(self._file.write(view[start : start + CHUNK_BYTES]))
            for source in self._maps if hasattr(mmap, "MADV_DONTNEED") else ():
                # Nobody writes to these private maps, so nothing is lost: the pages come back from the file.
                source.madvise(mmap.MADV_DONTNEED)
        return len(view)

    def flush(self):
        """Writes out what is buffered."""
        self._file.flush()


class MemoryTensor:
    """A PyTorch tensor as something to write; made contiguous slice by slice."""

    def __init__(self, tensor, dtype: str):
        self._tensor = tensor
        self.dtype, self.shape, self.nbytes = dtype, tuple(tensor.shape), tensor.nbytes

    def chunks(self):
        """The bytes in row-major order, at most CHUNK_BYTES at once."""
        return _contiguous_pieces(self._tensor)


def _contiguous_pieces(tensor):
    if tensor.nbytes <= CHUNK_BYTES or tensor.dim() == 0:
        import torch

        yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        return
    rows = max(1, CHUNK_BYTES // tensor[0].nbytes)
    for start in range(0, len(tensor), rows):
        piece = tensor[start : start + rows]
        yield from _contiguous_pieces(piece if piece.nbytes <= CHUNK_BYTES else piece[0])


def _import_torch(path):
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{path} is in PyTorch's format: install PyTorch (pip install torch), or use safetensors, "
                          "which need no PyTorch") from error
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < MINIMUM_TORCH:
        raise ImportError(f"PyTorch {torch.__version__} cannot read .pth files safely; install 2.6 or newer")
    return torch


def _locate(path, name, tensor, mapping):
    dtype = _DTYPE_OF_TORCH.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise ValueError(f"{name} in {path} is {tensor.dtype}, which safetensors cannot hold")
    tensor = tensor.detach()
    address = tensor.data_ptr()
    for start, stop, offset in mapping:
        if tensor.is_contiguous() and start <= address and address + tensor.nbytes <= stop:
            return StoredTensor(path, dtype, tuple(tensor.shape), address - start + offset)
    return MemoryTensor(tensor, dtype)


def _find_mapping(path):
    """(first address, last + 1, offset in the file) of the file's mapped parts; none where there is no /proc."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    spans = []
    for line in lines:
        addresses, _, offset, _, _, *name = line.split(maxsplit=5)
        if name and name[0] == str(path.resolve()):
            start, stop = (int(address, 16) for address in addresses.split("-"))
            spans.append((start, stop, int(offset, 16)))
    return spans
