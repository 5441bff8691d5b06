"""What others call the parts of an adapter: any name in, the original's layer and the part out.

Names have prefixes (state_dicts.PREFIXES, or kohya's lora_unet_ with underscores for dots), the layers' names of the
original or of diffusers, and parts called A and B, down and up, alpha, or diff for what is added to a parameter itself.
"""

import re

from tools.conversion.names import to_naming
from tools.conversion.state_dicts import split_name

_BLOCK_LINEARS = (*(f"{kind}_attn.{part}" for kind in ("self", "cross") for part in "qkvo"), "ffn.0", "ffn.2")
_LINEARS = ("patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2",
            "time_projection.1", "head.head")
_BLOCK_OTHERS = ("norm3", *(f"{kind}_attn.norm_{part}" for kind in ("self", "cross") for part in "qk"))
_UNDERSCORED = ("lora_unet_", "lora_transformer_", "lycoris_")
# An adapter's name may stand between the part and its end: lora_A.default.weight.
_PARTS = (
    ("A", re.compile(r"\.(lora_A|lora_down|lora\.down)(\.\w+)?\.weight$")),
    ("B", re.compile(r"\.(lora_B|lora_up|lora\.up)(\.\w+)?\.weight$")),
    ("bias", re.compile(r"\.(lora_B|lora_up)(\.\w+)?\.bias$")),
    ("alpha", re.compile(r"\.alpha$")),
    ("weight difference", re.compile(r"\.diff$")),
    ("bias difference", re.compile(r"\.diff_b$")),
    ("modulation difference", re.compile(r"(\.|^)diff_m$")),
)
_MERGE = "merge it with what made it, and convert the merged transformer with dit"
# What is no low-rank adapter of this transformer, by a mark in the name, and what to do.
_REFUSED = (
    (r"\.hada_w[12]_[ab]$|\.hada_t", f"LoHa (Hadamard products): {_MERGE}"),
    (r"\.lokr_(w|t)", f"LoKr (Kronecker products): {_MERGE}"),
    (r"\.(dora_scale|lora_magnitude_vector)\b", f"DoRA (weights of their own length): {_MERGE}"),
    (r"\.(oft_|boft_)", f"OFT (rotations): {_MERGE}"),
    (r"\.lora_mid\.", f"a Tucker decomposition: {_MERGE}"),
    (r"\.(set_weight|reshape_weight)$", f"weights of another shape: {_MERGE}"),
    (r"(k|v)_img\b|img_emb\b|add_[kv]_proj|image_embedder|norm_added_k",
     "an adapter of an image-to-video transformer, which has layers that a text-to-video one has not: take the "
     "text-to-video version of it"),
    (r"^(text_encoder|lora_te)", "an adapter of a text encoder, which is not supported: take one of the transformer "
                                 "alone"),
    (r"^transformer_2\.", "an adapter of the second transformer of Wan2.2's A14B, which is not supported"),
    (r"vace_(blocks|patch)", "an adapter of VACE's control layers, which this transformer has not"),
)


def recognise(name):
    """(layer or module in the original's names, part, layer's own name without prefix) of a tensor of an adapter.

    Parts are A, B, bias (of B), alpha, and weight, bias or modulation "difference".

    Raises:
        ValueError: no part of an adapter that is supported, with what it is and what to do where that is known.
    """
    for mark, what in _REFUSED:
        if re.search(mark, name):
            raise ValueError(f"{name} is of {what}")
    for part, ending in _PARTS:
        if match := ending.search(name):
            own = _without_prefix(name[: match.start()])
            return _original(own, part, name), part, own
    raise ValueError(f"{name} is no part of a LoRA; parts are lora_A and lora_B, lora_down and lora_up, alpha, diff "
                     "(a whole transformer is converted with dit)")


def _without_prefix(layer):
    for prefix in _UNDERSCORED:
        layer = layer.removeprefix(prefix)
    return split_name(layer)[1].removesuffix(".processor")


def _original(own, part, name):
    flat = own.replace(".", "_")
    block = re.fullmatch(r"blocks_(\d+)(?:_(.+))?", flat)
    if part == "modulation difference" and (block and not block[2] or flat == "head"):
        return f"blocks.{block[1]}" if block else "head"
    found = _IN_BLOCK.get(block[2]) if block else _OUTSIDE.get(flat)
    if found is None or part == "modulation difference" or (found in _BLOCK_OTHERS and "difference" not in part):
        raise ValueError(f"{name} is of a layer that the transformer has not, or that can have no such part")
    return f"blocks.{block[1]}.{found}" if block else found


def _table(names, prefix=""):
    """{a name of a layer with underscores for dots, in either naming: its original name}."""
    table = {}
    for name in names:
        diffusers = to_naming("dit", prefix + name, "diffusers").removeprefix(prefix)
        for known in (name, diffusers, diffusers.replace(".to_out.0", ".to_out")):
            table[known.replace(".", "_")] = name
    return table


_IN_BLOCK = _table((*_BLOCK_LINEARS, *_BLOCK_OTHERS), "blocks.0.")
_OUTSIDE = _table(_LINEARS)
