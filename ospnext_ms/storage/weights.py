"""Weights of a MindSpore Cell, from and to safetensors: all of them or none, tensor by tensor."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ospnext_ms.storage.open_weights import open_weights
from ospnext_ms.storage.safetensors_io import DTYPE_BYTES, MAX_SHARD_BYTES, ArrayTensor, TensorValues, write_checkpoint

if TYPE_CHECKING:
    from mindspore import Parameter, Tensor, nn

_DTYPE_OF_MINDSPORE = {
    "Float64": "F64", "Float32": "F32", "Float16": "F16", "BFloat16": "BF16", "Int64": "I64", "Int32": "I32",
    "Int16": "I16", "Int8": "I8", "UInt64": "U64", "UInt32": "U32", "UInt16": "U16", "UInt8": "U8", "Bool": "BOOL",
    # Bytes, as its codes are stored.
    "HiFloat8": "U8",
}
_SAVE_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_NUMPY_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
_FLOATS = (*_NUMPY_FLOATS, "BF16")


class Shards(Protocol):
    """What is asked of parallel.sharding.ShardedWeights."""

    def shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]: ...
    def cut(self, name: str, whole: np.ndarray) -> np.ndarray: ...


def load_weights(cell: "nn.Cell", path: str | os.PathLike) -> None:
    """Loads a checkpoint into a Cell: every parameter, and nothing else. Weights stored as HiF8 are decoded.

    `path` is a safetensors file, a folder with one or with shards and their index, or an index. All names, shapes and
    kinds of dtype are compared with the Cell's parameters from the files' headers first, so a checkpoint that does
    not fit changes nothing. Floating-point tensors are cast to the parameter's dtype (bf16 is widened exactly). Besides
    the Cell's own memory this needs that of its largest tensor, a few times over.

    Raises:
        FileNotFoundError: no checkpoint there, or shards missing (named).
        ValueError: missing, unexpected or misshapen tensors (listed), dtypes that do not fit, truncated files.
    """
    set_tensors(dict(cell.parameters_and_names()), open_weights(path), path)


def set_tensors(parameters: "Mapping[str, Parameter]", tensors: Mapping[str, TensorValues], origin: object,
                shards: Shards | None = None) -> None:
    """Gives parameters, which no graph uses yet, the values of stored tensors: all of them, and nothing else, or none.

    Args:
        parameters: {name: Parameter}. tensors: {name: stored tensor with dtype, shape and numpy()}.
        origin: name of the source in errors.
        shards: parallel.sharding.ShardedWeights, of whose weights this process holds a part only; None: none.

    Raises:
        ValueError: missing, unexpected or misshapen tensors (listed), dtypes that do not fit.
    """
    import mindspore

    from ospnext_ms.kernels.hif8_operators import held_tensor

    expected = {name: tuple(parameter.shape) if shards is None else shards.shape(name, parameter.shape)
                for name, parameter in parameters.items()}
    report = mismatch_report(expected, {name: tensor.shape for name, tensor in tensors.items()})
    report += [f"dtypes that do not fit: {_listed(odd)}"] if (odd := _odd_dtypes(parameters, tensors)) else []
    if report:
        raise ValueError(f"{origin} does not fit the network, nothing was loaded:\n" + "\n".join(report))
    for name, parameter in parameters.items():
        values = tensors[name].numpy()
        if shards is not None:
            values = np.ascontiguousarray(shards.cut(name, values))
        # set_data, as the parameter may have no memory yet; nothing has been compiled (see kernels.assign).
        parameter.set_data(held_tensor(values, parameter.dtype) if parameter.dtype == mindspore.hifloat8 else
                           mindspore.Tensor(values, dtype=parameter.dtype))


def save_weights(cell_or_dict: "nn.Cell | Mapping[str, Tensor | np.ndarray]", path: str | os.PathLike,
                 dtype: object = None, max_shard_bytes: float = MAX_SHARD_BYTES, *,
                 overwrite: bool = False) -> list[str]:
    """Saves a Cell's parameters, or a dict of MindSpore tensors or NumPy arrays, as safetensors, atomically.

    `path` ending in .safetensors is written as one file, anything else as a folder of shards of at most
    `max_shard_bytes` with `model.safetensors.index.json`. With `dtype` ("float32", "float16", "bfloat16" or the
    MindSpore dtype) floating-point tensors are cast to it, rounding to nearest even. Returns the files' names.

    Raises:
        FileExistsError: `path` exists and `overwrite` is not set, or it is a folder that holds something else.
        ValueError: an unknown dtype, or a parameter that was never initialised.
    """
    if not isinstance(cell_or_dict, Mapping):
        cell_or_dict = dict(cell_or_dict.parameters_and_names())
    if dtype is not None:
        if str(dtype).lower() not in _SAVE_DTYPES:
            raise ValueError(f"dtype is {dtype}; valid: {', '.join(_SAVE_DTYPES)}")
        dtype = _SAVE_DTYPES[str(dtype).lower()]
    empty = [name for name, tensor in cell_or_dict.items() if getattr(tensor, "has_init", False)]
    if empty:
        raise ValueError(f"parameters that were never initialised: {_listed(empty)}")
    tensors = {name: _LiveTensor(tensor, dtype) for name, tensor in cell_or_dict.items()}
    return write_checkpoint(path, tensors, max_shard_bytes, overwrite=overwrite, metadata={"format": "np"})


def mismatch_report(expected: Mapping[str, tuple], found: Mapping[str, tuple]) -> list[str]:
    """Compares two tables of name -> shape: one line for each of missing, unexpected and misshapen, none if equal."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [f"{name} {tuple(found[name])} instead of {tuple(expected[name])}" for name in expected
                 if name in found and tuple(found[name]) != tuple(expected[name])]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    return [f"{kind} ({len(names)}): {_listed(names)}" for kind, names in kinds.items() if names]


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Rounds float32 values to bf16 (to nearest, ties to even) and returns the bits as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    # Rounding could carry a NaN's mantissa into infinity; a quiet bit keeps it a NaN.
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def round_to(values: np.ndarray, dtype: object) -> np.ndarray:
    """fp32 values rounded to a MindSpore dtype, fp32, bf16 or fp16, to nearest even; fp32 again."""
    kind = _DTYPE_OF_MINDSPORE[str(dtype)]
    if kind == "BF16":
        return (bfloat16_bits(values).astype(np.uint32) << 16).view(np.float32)
    return values.astype(_NUMPY_FLOATS[kind]).astype(np.float32)


class _LiveTensor:
    """A tensor in memory as something to write; copied to the host, and cast, only when its turn comes."""

    def __init__(self, tensor: "Tensor | np.ndarray", dtype: str | None):
        self._tensor = tensor
        is_array = isinstance(tensor, np.ndarray)
        self._own_dtype = ArrayTensor(tensor).dtype if is_array else _DTYPE_OF_MINDSPORE[str(tensor.dtype)]
        self.dtype = dtype if dtype and self._own_dtype in _FLOATS else self._own_dtype
        self.shape = tuple(tensor.shape)
        self.nbytes = math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    def chunks(self) -> Iterator[memoryview]:
        """The whole tensor's bytes at once."""
        array = self._tensor if isinstance(self._tensor, np.ndarray) else self._tensor.asnumpy()
        if self._own_dtype == "BF16":
            array = array.view(np.uint16)
            if self.dtype != "BF16":
                array = (array.astype(np.uint32) << 16).view(np.float32)
        if self.dtype != self._own_dtype:
            array = bfloat16_bits(array) if self.dtype == "BF16" else array.astype(_NUMPY_FLOATS[self.dtype])
        yield from ArrayTensor(array).chunks()


def _odd_dtypes(parameters: "Mapping[str, Parameter]", stored: Mapping[str, TensorValues]) -> list[str]:
    odd = []
    for name in parameters.keys() & stored.keys():
        own, other = _DTYPE_OF_MINDSPORE[str(parameters[name].dtype)], stored[name].dtype
        if own != other and not (own in _FLOATS and other in _FLOATS):
            odd.append(f"{name} {other} instead of {own}")
    return sorted(odd)


def _listed(names: Sequence[str], limit: int = 10) -> str:
    return ", ".join(names[:limit]) + (f", ... {len(names) - limit} more" if len(names) > limit else "")
