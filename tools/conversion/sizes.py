"""The sizes of a network: from its config.json or a run's YAML where there is one, else from its tensors' shapes."""

import math
import re
import types
from collections.abc import Mapping

from ospnext_ms.models.config import VAE_BLOCKS, VAE_TIME_LEVELS, VAE_WIDTHS
from tools.conversion.names import to_naming

# Where a size can be read: original tensor name and dimension.
_SIZES_IN_SHAPES = {
    "dit": {"dim": ("patch_embedding.weight", 0), "in_channels": ("patch_embedding.weight", 1),
            "ffn_dim": ("blocks.0.ffn.0.weight", 0), "freq_dim": ("time_embedding.0.weight", 1),
            "text_dim": ("text_embedding.0.weight", 1)},
    "vae": {"dim": ("encoder.conv1.weight", 0), "z_dim": ("conv2.weight", 0)},
    "umt5": {"vocab_size": ("token_embedding.weight", 0), "dim": ("token_embedding.weight", 1),
             "ffn_dim": ("blocks.0.ffn.fc1.weight", 0),
             "num_buckets": ("blocks.0.pos_embedding.embedding.weight", 0),
             "num_heads": ("blocks.0.pos_embedding.embedding.weight", 1)},
}
# Names of the sizes in the files beside the weights: the original's and ours, then diffusers' or transformers'.
_KEYS = {
    "dit": {"dim": ("dim",), "ffn_dim": ("ffn_dim",), "num_layers": ("num_layers",), "freq_dim": ("freq_dim",),
            "text_dim": ("text_dim",), "in_channels": ("in_channels", "in_dim"),
            "out_channels": ("out_channels", "out_dim"), "patch_size": ("patch_size",)},
    "vae": {"dim": ("dim", "base_dim"), "z_dim": ("z_dim",)},
    "umt5": {"vocab_size": ("vocab_size",), "dim": ("dim", "d_model"), "ffn_dim": ("ffn_dim", "d_ff"),
             "num_heads": ("num_heads",), "num_layers": ("num_layers",),
             "num_buckets": ("num_buckets", "relative_attention_num_buckets")},
}
SECTIONS = {"dit": "dit", "vae": "vae", "umt5": "text_encoder"}
# By the class name in config.json; whatever is neither of these describes a transformer.
_CLASS_MARKS = {"vae": r"vae|autoencoder", "umt5": r"t5"}
_FIXED = {
    "vae": {"dim_mult": list(VAE_WIDTHS), "num_res_blocks": VAE_BLOCKS["encoder"], "attn_scales": [],
            "temperal_downsample": list(VAE_TIME_LEVELS)},
}


def sizes_from_config(kind: str, config: Mapping) -> dict | None:
    """The sizes a config.json (original, diffusers, transformers) or a run's YAML gives; None if it is of another kind
    of network: Wan2.1's folder holds the weights of all three, but only the transformer's config.json.

    Raises:
        ValueError: it describes a network we do not have.
    """
    if "model" in config and isinstance(config["model"], Mapping):
        config = config["model"].get(SECTIONS[kind])
        return _known_keys(kind, config) if isinstance(config, Mapping) else None
    class_name = str(config.get("_class_name") or (config.get("architectures") or [""])[0])
    marked = [other for other, mark in _CLASS_MARKS.items() if re.search(mark, class_name, re.IGNORECASE)]
    if class_name and kind != (marked or ["dit"])[0]:
        return None
    for key, value in _FIXED.get(kind, {}).items():
        if config.get(key, value) != value:
            raise ValueError(f"{key} is {config[key]} in the configuration; only {value} is supported")
    sizes = _known_keys(kind, config)
    if kind == "dit" and "attention_head_dim" in config:
        sizes["dim"] = config["num_attention_heads"] * config["attention_head_dim"]
    return sizes


def infer_sizes(kind: str, naming: str, shapes: Mapping[str, tuple], known: Mapping = types.MappingProxyType({})):
    """All sizes, from `known` and for the rest from the tensors' shapes (`shapes` is in the checkpoint's own naming).

    Raises:
        ValueError: a tensor needed for this is missing or has too few dimensions.
    """
    def shape_of(name, rank):
        return _shape_of(kind, naming, shapes, name, rank)

    sizes = dict(known)
    for size, (name, dimension) in _SIZES_IN_SHAPES[kind].items():
        if size not in sizes:
            sizes[size] = shape_of(name, dimension + 1)[dimension]
    if kind == "dit":
        if "patch_size" not in sizes:
            sizes["patch_size"] = shape_of("patch_embedding.weight", 5)[2:]
        if "out_channels" not in sizes:
            sizes["out_channels"] = shape_of("head.head.weight", 1)[0] // math.prod(sizes["patch_size"])
    if kind != "vae" and "num_layers" not in sizes:
        pattern = r"^encoder\.block\.(\d+)\." if (kind, naming) == ("umt5", "diffusers") else r"^blocks\.(\d+)\."
        sizes["num_layers"] = 1 + max(int(match[1]) for name in shapes if (match := re.match(pattern, name)))
    if sizes.get("num_layers", 0) > len(shapes):
        raise ValueError(f"{sizes['num_layers']} layers cannot be right for {len(shapes)} tensors")
    return sizes


def _known_keys(kind, config):
    sizes = {}
    for size, keys in _KEYS[kind].items():
        for key in keys:
            if config.get(key) is not None:
                sizes[size] = tuple(config[key]) if isinstance(config[key], list) else config[key]
                break
    for size, value in sizes.items():
        numbers = value if size == "patch_size" and isinstance(value, tuple) and len(value) == 3 else (value,)
        if not all(type(number) is int and number > 0 for number in numbers):
            raise ValueError(f"{size} is {value!r} in the configuration of the {kind}, which is no size")
    return sizes


def _shape_of(kind, naming, shapes, name, rank):
    name = to_naming(kind, name, naming)
    shape = shapes.get(name)
    if shape is None:
        raise ValueError(f"this is no {kind} checkpoint in {naming} naming: {name} is missing; "
                         f"it holds {len(shapes)} tensors: {', '.join(list(shapes)[:5])} ...")
    if len(shape) < rank:
        raise ValueError(f"misshapen: {name} has shape {tuple(shape)}, expected {rank} dimensions")
    return tuple(shape)
