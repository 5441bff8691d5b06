"""Adapter files as others write them, of a tiny transformer, and what they should mean."""

import json

import numpy as np

from ospnext_ms.storage.safetensors_io import ArrayTensor, write_file

LAYERS = ("blocks.0.self_attn.q", "blocks.0.cross_attn.o", "blocks.1.self_attn.q", "blocks.1.ffn.0")
DIFFUSERS = {"self_attn.q": "attn1.to_q", "cross_attn.o": "attn2.to_out.0", "ffn.0": "ffn.net.0.proj"}
RANK, ALPHA = 2, 6.0


def random_pairs(layers=LAYERS, rank=RANK, size=(7, 5)):
    """{layer: (A [rank, in], B [out, rank])}."""
    rng = np.random.default_rng(0)
    return {layer: (rng.standard_normal((rank, size[1]), np.float32), rng.standard_normal((size[0], rank), np.float32))
            for layer in layers}


def diffusers_name(layer):
    head, tail = layer[: len("blocks.0.")], layer[len("blocks.0."):]
    return head + DIFFUSERS[tail]


def named(pairs, prefix="", rename=lambda layer: layer, parts=("lora_A.weight", "lora_B.weight"), alpha=None):
    """{name: array} of a file in some naming; `alpha` adds a tensor a layer."""
    arrays = {}
    for layer, pair in pairs.items():
        name = prefix + rename(layer)
        arrays |= {f"{name}.{part}": array for part, array in zip(parts, pair, strict=True)}
        if alpha is not None:
            arrays[f"{name}.alpha"] = np.array(alpha, np.float32)
    return arrays


def write_safetensors(path, arrays, metadata=None):
    """Writes {name: array}; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, {name: ArrayTensor(array) for name, array in arrays.items()}, metadata or {})
    return path


def peft_config(**changes):
    """PEFT's adapter_config.json as text."""
    return json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["q"]} | changes)
