"""The one way to open weights in whatever form: a file, shards and index, a group of a training checkpoint, HiF8 codes.

Headers are read, no tensor data, except to compare the files of a training checkpoint with their SHA-256.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from ospnext_ms.storage.files import conversion, current_folder
from ospnext_ms.storage.hif8_weights import join_codes
from ospnext_ms.storage.safetensors_io import (
    INDEX_SUFFIX,
    StoredTensor,
    TensorValues,
    check_shard,
    find_weights_file,
    read_header,
    read_index,
)
from ospnext_ms.storage.training_checkpoint import JoinedTensor, is_group, problems_of, read_group

# safetensors' names of the kinds of float8.
FLOAT8 = ("F8_E4M3", "F8_E5M2")


def open_headers(path: str | os.PathLike) -> Mapping[str, TensorValues]:
    """As open_weights, of which only dtypes and shapes are wanted: nothing is compared with a SHA-256."""
    headers = read_headers(path)
    if float8 := [name for name, tensor in headers.items() if tensor.dtype in FLOAT8]:
        raise ValueError(f"{path} holds {len(float8)} weights in float8 ({float8[0]}), which networks here do not "
                         f"compute with; {conversion(path)}")
    return join_codes(path, headers)


def open_weights(path: str | os.PathLike) -> Mapping[str, TensorValues]:
    """The tensors of a checkpoint by name, each pair of HiF8 codes and scale as the one weight that it stands for.

    Raises:
        FileNotFoundError: see read_headers.
        ValueError: see there; weights in float8; a group of a training checkpoint whose files are not those that were
            written; codes and scales that do not go together (listed).
    """
    refuse_damaged(path)
    return open_headers(path)


def read_headers(path: str | os.PathLike) -> Mapping[str, StoredTensor | JoinedTensor]:
    """Reads all headers of a checkpoint: a safetensors file, a folder with one or with shards and their index, an
    index, or one group of a training checkpoint (.../step_00000100/ema). No tensor data is read.

    Raises:
        FileNotFoundError: nothing there, or shards missing (named).
        ValueError: a file is not safetensors or truncated (named), or index and shards disagree.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path} {current_folder()}")
    if is_group(path):
        return read_group(path)
    if path.is_dir():
        path = find_weights_file(path)
    if not path.name.endswith(INDEX_SUFFIX):
        return read_header(path)[0]
    tensors = {}
    for shard, names in read_index(path).items():
        header, _ = read_header(path.parent / shard)
        check_shard(path, shard, names, header)
        tensors.update(header)
    return tensors


def refuse_damaged(path: str | os.PathLike):
    """Compares the files of a group of a training checkpoint with the SHA-256 of its manifest; other weights have none.

    Raises:
        ValueError: naming the files that are not those that were written.
    """
    path = Path(path)
    problems = problems_of(path.parent, group=path.name) if is_group(path) else []
    if problems:
        raise ValueError(f"the weights {path} are refused: " + "; ".join(problems))
