"""Tiny checkpoints for the converter's tests, written as others write them."""

import json

import numpy as np
import pytest

from ospnext_ms.models.parameters import expected_shapes
from ospnext_ms.storage.open_weights import read_headers
from tools.conversion.names import to_naming

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

SIZES = {
    "dit": {"dim": 16, "ffn_dim": 24, "num_layers": 2, "freq_dim": 8, "text_dim": 12, "in_channels": 16,
            "out_channels": 16, "patch_size": (1, 2, 2)},
    "vae": {"dim": 6, "z_dim": 16},
    "umt5": {"vocab_size": 40, "dim": 16, "ffn_dim": 24, "num_heads": 4, "num_layers": 2, "num_buckets": 32},
}
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def random_state(kind, naming="original", dtypes=(torch.float32,)):
    """Tensors of random bits, NaN and infinity among them: only a copy of the bits keeps them. Dtypes take turns."""
    generator = np.random.default_rng(0)
    state = {}
    for i, (name, shape) in enumerate(expected_shapes(kind, SIZES[kind]).items()):
        dtype = dtypes[i % len(dtypes)]
        bits = generator.integers(0, 256, int(np.prod(shape)) * dtype.itemsize, np.uint8)
        state[to_naming(kind, name, naming)] = torch.from_numpy(bits).view(dtype).view(shape)
    return state


def stored_bytes(path):
    tensors = read_headers(path)
    return {name: (tensor.dtype, tensor.shape, b"".join(tensor.chunks())) for name, tensor in tensors.items()}


def state_bytes(state):
    dtypes = {torch_dtype: name for name, torch_dtype in DTYPES.items()}
    return {name: (dtypes[tensor.dtype], tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
            for name, tensor in state.items()}


def write_source(path, state, shards=1):
    """A checkpoint as others write it: with the safetensors package or torch.save."""
    if path.suffix == ".pth":
        torch.save(state, path)
    elif path.suffix == ".safetensors":
        safetensors_torch.save_file(state, path)
    else:
        path.mkdir()
        names, weight_map = list(state), {}
        for i in range(shards):
            shard = f"diffusion_pytorch_model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = {name: state[name] for name in names[i::shards]}
            safetensors_torch.save_file(part, path / shard)
            weight_map.update(dict.fromkeys(part, shard))
        index = path / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path
