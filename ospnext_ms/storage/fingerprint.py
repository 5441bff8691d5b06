"""Short hashes that tell whether files are still the same, without reading gigabytes."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from ospnext_ms.storage.open_weights import read_headers

_END_BYTES = 1 << 20


def of_checkpoint(path: str | os.PathLike) -> str:
    """Hash of a checkpoint's names and shapes and of the ends of its files."""
    headers = read_headers(path)
    shapes = json.dumps({name: [tensor.dtype, tensor.shape] for name, tensor in sorted(headers.items())})
    files = of_files(sorted({path for tensor in headers.values() for path in tensor.paths}))
    return hashlib.sha256((shapes + files).encode()).hexdigest()


def of_files(paths: Iterable[Path]) -> str:
    """Hash of the sizes and the ends of files; folders among them are passed over."""
    digest = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            continue
        size = path.stat().st_size
        with open(path, "rb") as file:
            digest.update(f"{size}".encode() + file.read(_END_BYTES))
            file.seek(max(0, size - _END_BYTES))
            digest.update(file.read())
    return digest.hexdigest()


def of_whole_file(path: str | os.PathLike) -> str:
    """SHA-256 of all of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_values(values: object) -> str:
    """Hash of JSON values."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
