"""The two namings of the same weights: Wan2.1's original one, and that of diffusers (transformer, VAE) and
transformers (UMT5), both called "diffusers" here.

The transformer's norms trade names: the affine norm before cross-attention is norm3 in the original and norm2 in
diffusers.
"""

import re
from collections.abc import Iterable

NAMINGS = ("original", "diffusers")

# Substitutions from original to diffusers, of which the first that matches is applied; a name that none matches is the
# same in both. Parts after the match (.weight, .bias) stay.
_DIT_RULES = (
    (r"^text_embedding\.0\b", "condition_embedder.text_embedder.linear_1"),
    (r"^text_embedding\.2\b", "condition_embedder.text_embedder.linear_2"),
    (r"^time_embedding\.0\b", "condition_embedder.time_embedder.linear_1"),
    (r"^time_embedding\.2\b", "condition_embedder.time_embedder.linear_2"),
    (r"^time_projection\.1\b", "condition_embedder.time_proj"),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^head\.head\b", "proj_out"),
    (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    (r"^(blocks\.\d+)\.norm3\b", r"\1.norm2"),
    (r"^(blocks\.\d+)\.self_attn\.o\b", r"\1.attn1.to_out.0"),
    (r"^(blocks\.\d+)\.self_attn\.([qkv])\b", r"\1.attn1.to_\2"),
    (r"^(blocks\.\d+)\.self_attn\.norm_([qk])\b", r"\1.attn1.norm_\2"),
    (r"^(blocks\.\d+)\.cross_attn\.o\b", r"\1.attn2.to_out.0"),
    (r"^(blocks\.\d+)\.cross_attn\.([qkv])\b", r"\1.attn2.to_\2"),
    (r"^(blocks\.\d+)\.cross_attn\.norm_([qk])\b", r"\1.attn2.norm_\2"),
    (r"^(blocks\.\d+)\.ffn\.0\b", r"\1.ffn.net.0.proj"),
    (r"^(blocks\.\d+)\.ffn\.2\b", r"\1.ffn.net.2"),
)
_UMT5_RULES = (
    (r"^token_embedding\b", "shared"),
    (r"^norm\b", "encoder.final_layer_norm"),
    (r"^blocks\.(\d+)\.norm1\b", r"encoder.block.\1.layer.0.layer_norm"),
    (r"^blocks\.(\d+)\.attn\.([qkvo])\b", r"encoder.block.\1.layer.0.SelfAttention.\2"),
    (r"^blocks\.(\d+)\.pos_embedding\.embedding\b",
     r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias"),
    (r"^blocks\.(\d+)\.norm2\b", r"encoder.block.\1.layer.1.layer_norm"),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\b", r"encoder.block.\1.layer.1.DenseReluDense.wi_0"),
    (r"^blocks\.(\d+)\.ffn\.fc1\b", r"encoder.block.\1.layer.1.DenseReluDense.wi_1"),
    (r"^blocks\.(\d+)\.ffn\.fc2\b", r"encoder.block.\1.layer.1.DenseReluDense.wo"),
)
_VAE_MODULE_RULES = (
    (r"^conv1\b", "quant_conv"),
    (r"^conv2\b", "post_quant_conv"),
    (r"^(encoder|decoder)\.conv1\b", r"\1.conv_in"),
    (r"^(encoder|decoder)\.head\.0\b", r"\1.norm_out"),
    (r"^(encoder|decoder)\.head\.2\b", r"\1.conv_out"),
    (r"^(encoder|decoder)\.middle\.0\b", r"\1.mid_block.resnets.0"),
    (r"^(encoder|decoder)\.middle\.1\b", r"\1.mid_block.attentions.0"),
    (r"^(encoder|decoder)\.middle\.2\b", r"\1.mid_block.resnets.1"),
    (r"^encoder\.downsamples\b", "encoder.down_blocks"),
)
_VAE_RESIDUAL_RULES = (
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)
_VAE_UP_BLOCK_LENGTH = 4

_DIFFUSERS_MARK = {
    "dit": r"^(condition_embedder\.|proj_out\.|scale_shift_table$|blocks\.\d+\.attn[12]\.)",
    "vae": r"^(quant_conv|post_quant_conv|(encoder|decoder)\.(conv_in|conv_out|mid_block|down_blocks|up_blocks))\.",
    "umt5": r"^(shared\.|encoder\.(block|final_layer_norm|embed_tokens)\.)",
}

_SUPERFLUOUS = {
    ("umt5", "diffusers"): (
        (r"^decoder\.", "the decoder of a full UMT5"),
        (r"^lm_head\.", "the output layer of a full UMT5"),
        (r"^encoder\.embed_tokens\.weight$", "a second name of shared.weight"),
        (r"^spiece_model$", "the tokenizer"),
    ),
}


def to_naming(kind: str, name: str, naming: str) -> str:
    """The name, in `naming`, of the weight that the original calls `name`."""
    if naming == "original":
        return name
    if kind == "vae":
        return _substitute(_VAE_RESIDUAL_RULES, _substitute(_VAE_MODULE_RULES, _vae_up_block(name)))
    return _substitute({"dit": _DIT_RULES, "umt5": _UMT5_RULES}[kind], name)


def detect_naming(kind: str, names: Iterable[str]) -> str:
    """Which naming a checkpoint uses; "original" where nothing speaks for the other."""
    mark = re.compile(_DIFFUSERS_MARK[kind])
    return "diffusers" if any(mark.match(name) for name in names) else "original"


def drop_superfluous(kind: str, naming: str, tensors: dict) -> tuple[dict, dict[str, list[str]]]:
    """Takes out the tensors known to be no part of the network; nothing else is ever ignored.

    Returns the rest, and the names taken out by reason.
    """
    tensors, dropped = dict(tensors), {}
    if kind == "umt5" and "shared.weight" not in tensors and "encoder.embed_tokens.weight" in tensors:
        tensors["shared.weight"] = tensors.pop("encoder.embed_tokens.weight")
    for pattern, reason in _SUPERFLUOUS.get((kind, naming), ()):
        for name in [name for name in tensors if re.match(pattern, name)]:
            del tensors[name]
            dropped.setdefault(reason, []).append(name)
    return tensors, dropped


def _substitute(rules, name):
    for pattern, replacement in rules:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name


def _vae_up_block(name):
    """The original numbers the decoder's residual blocks and up-samplers through, diffusers groups them by level."""
    match = re.match(r"^decoder\.upsamples\.(\d+)\.(.*)$", name)
    if not match:
        return name
    level, i = divmod(int(match[1]), _VAE_UP_BLOCK_LENGTH)
    module = "upsamplers.0" if i == _VAE_UP_BLOCK_LENGTH - 1 else f"resnets.{i}"
    return f"decoder.up_blocks.{level}.{module}.{match[2]}"
