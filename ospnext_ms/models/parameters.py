"""Names and shapes of every weight of the three networks, in Wan2.1's original naming, which is also ours.

The sizes are plain numbers here, not configurations: those also hold what no weight shows (heads of the transformer,
text length, sparse layout), and a checkpoint may come without them. Framework-free.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ospnext_ms.models.config import VAE_BLOCKS, VAE_TIME_LEVELS, VAE_WIDTHS

KINDS = ("dit", "vae", "umt5")
Shape = tuple[int, ...]
Shapes = dict[str, Shape]


def expected_shapes(kind: str, sizes: Mapping[str, Any]) -> Shapes:
    """Table name -> shape of a network of the given sizes, in the order of the original modules.

    `sizes` has exactly the parameters of `dit_shapes`, `vae_shapes` or `umt5_shapes`.
    """
    return {"dit": dit_shapes, "vae": vae_shapes, "umt5": umt5_shapes}[kind](**sizes)


def dit_shapes(*, dim: int, ffn_dim: int, num_layers: int, freq_dim: int, text_dim: int, in_channels: int,
               out_channels: int, patch_size: Sequence[int]) -> Shapes:
    """The diffusion transformer (Wan2.1, arXiv 2503.20314)."""
    patch_volume = patch_size[0] * patch_size[1] * patch_size[2]
    table = {
        **_layer("patch_embedding", (dim, in_channels, *patch_size)),
        **_layer("text_embedding.0", (dim, text_dim)),
        **_layer("text_embedding.2", (dim, dim)),
        **_layer("time_embedding.0", (dim, freq_dim)),
        **_layer("time_embedding.2", (dim, dim)),
        **_layer("time_projection.1", (6 * dim, dim)),
    }
    for i in range(num_layers):
        block = f"blocks.{i}"
        table[f"{block}.modulation"] = (1, 6, dim)
        table.update(_dit_attention(f"{block}.self_attn", dim))
        table.update({f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,)})
        table.update(_dit_attention(f"{block}.cross_attn", dim))
        table.update(_layer(f"{block}.ffn.0", (ffn_dim, dim)))
        table.update(_layer(f"{block}.ffn.2", (dim, ffn_dim)))
    return table | {"head.modulation": (1, 2, dim)} | _layer("head.head", (out_channels * patch_volume, dim))


def umt5_shapes(*, vocab_size: int, dim: int, ffn_dim: int, num_heads: int, num_layers: int,
                num_buckets: int) -> Shapes:
    """The UMT5 text encoder; every layer has a relative position bias of its own."""
    table: Shapes = {"token_embedding.weight": (vocab_size, dim)}
    for i in range(num_layers):
        block = f"blocks.{i}"
        table[f"{block}.norm1.weight"] = (dim,)
        table.update({f"{block}.attn.{projection}.weight": (dim, dim) for projection in "qkvo"})
        table[f"{block}.norm2.weight"] = (dim,)
        table[f"{block}.ffn.gate.0.weight"] = (ffn_dim, dim)
        table[f"{block}.ffn.fc1.weight"] = (ffn_dim, dim)
        table[f"{block}.ffn.fc2.weight"] = (dim, ffn_dim)
        table[f"{block}.pos_embedding.embedding.weight"] = (num_buckets, num_heads)
    return table | {"norm.weight": (dim,)}


def vae_shapes(*, dim: int, z_dim: int) -> Shapes:
    """WanVAE: base width `dim`, width multipliers (1, 2, 4, 4), `z_dim` latent channels."""
    top = dim * VAE_WIDTHS[-1]
    return {
        **_layer("encoder.conv1", (dim, 3, 3, 3, 3)),
        **_vae_down(dim),
        **_vae_middle("encoder.middle", top),
        "encoder.head.0.gamma": (top, 1, 1, 1),
        **_layer("encoder.head.2", (2 * z_dim, top, 3, 3, 3)),
        **_layer("conv1", (2 * z_dim, 2 * z_dim, 1, 1, 1)),
        **_layer("conv2", (z_dim, z_dim, 1, 1, 1)),
        **_layer("decoder.conv1", (top, z_dim, 3, 3, 3)),
        **_vae_middle("decoder.middle", top),
        **_vae_up(dim),
        "decoder.head.0.gamma": (dim, 1, 1, 1),
        **_layer("decoder.head.2", (3, dim, 3, 3, 3)),
    }


def _layer(name: str, shape: Shape) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _dit_attention(name: str, dim: int) -> Shapes:
    table: Shapes = {}
    for projection in "qkvo":
        table.update(_layer(f"{name}.{projection}", (dim, dim)))
    return table | {f"{name}.norm_q.weight": (dim,), f"{name}.norm_k.weight": (dim,)}


def _vae_resample(name: str, space: tuple[int, int], time: tuple[int, int] | None) -> Shapes:
    """Between two levels: channels (out, in) of the convolution in space, and of that in time where there is one."""
    table = _layer(f"{name}.resample.1", (*space, 3, 3))
    if time:
        table.update(_layer(f"{name}.time_conv", (*time, 3, 1, 1)))
    return table


def _vae_down(dim: int) -> Shapes:
    table: Shapes = {}
    i, width = 0, dim
    for level, multiplier in enumerate(VAE_WIDTHS):
        for _ in range(VAE_BLOCKS["encoder"]):
            table.update(_vae_residual(f"encoder.downsamples.{i}", width, dim * multiplier))
            width = dim * multiplier
            i += 1
        if level < len(VAE_TIME_LEVELS):
            time = (width, width) if VAE_TIME_LEVELS[level] else None
            table.update(_vae_resample(f"encoder.downsamples.{i}", (width, width), time))
            i += 1
    return table


def _vae_up(dim: int) -> Shapes:
    table: Shapes = {}
    i, width = 0, dim * VAE_WIDTHS[-1]
    for level, multiplier in enumerate(reversed(VAE_WIDTHS)):
        for _ in range(VAE_BLOCKS["decoder"]):
            table.update(_vae_residual(f"decoder.upsamples.{i}", width, dim * multiplier))
            width = dim * multiplier
            i += 1
        if level < len(VAE_TIME_LEVELS):
            time = (2 * width, width) if VAE_TIME_LEVELS[::-1][level] else None
            table.update(_vae_resample(f"decoder.upsamples.{i}", (width // 2, width), time))
            width //= 2
            i += 1
    return table


def _vae_residual(name: str, width_in: int, width_out: int) -> Shapes:
    table: Shapes = {
        f"{name}.residual.0.gamma": (width_in, 1, 1, 1),
        **_layer(f"{name}.residual.2", (width_out, width_in, 3, 3, 3)),
        f"{name}.residual.3.gamma": (width_out, 1, 1, 1),
        **_layer(f"{name}.residual.6", (width_out, width_out, 3, 3, 3)),
    }
    return table if width_in == width_out else table | _layer(f"{name}.shortcut", (width_out, width_in, 1, 1, 1))


def _vae_middle(name: str, width: int) -> Shapes:
    return {
        **_vae_residual(f"{name}.0", width, width),
        f"{name}.1.norm.gamma": (width, 1, 1),
        **_layer(f"{name}.1.to_qkv", (3 * width, width, 1, 1)),
        **_layer(f"{name}.1.proj", (width, width, 1, 1)),
        **_vae_residual(f"{name}.2", width, width),
    }
