"""Parameters of the networks, from their configurations. C width, F hidden width of the feed-forward."""

import math


def dit_parameters(config):
    """{name: shape} of a transformer of DiTConfig, in Wan2.1's names."""
    dim, patch = config.dim, config.patch_size
    shapes = {"patch_embedding.weight": (dim, config.in_channels, *patch), "patch_embedding.bias": (dim,)}
    shapes |= _linear("text_embedding.0", config.text_dim, dim) | _linear("text_embedding.2", dim, dim)
    shapes |= _linear("time_embedding.0", config.freq_dim, dim) | _linear("time_embedding.2", dim, dim)
    shapes |= _linear("time_projection.1", dim, 6 * dim)
    for i in range(config.num_layers):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in _block(dim, config.ffn_dim).items()}
    shapes["head.modulation"] = (1, 2, dim)
    return shapes | _linear("head.head", dim, config.out_channels * math.prod(patch))


def _block(dim, ffn_dim):
    shapes = {"modulation": (1, 6, dim), "norm3.weight": (dim,), "norm3.bias": (dim,)}
    for attention in ("self_attn", "cross_attn"):
        for name in "qkvo":
            shapes |= _linear(f"{attention}.{name}", dim, dim)
        shapes |= {f"{attention}.norm_q.weight": (dim,), f"{attention}.norm_k.weight": (dim,)}
    return shapes | _linear("ffn.0", dim, ffn_dim) | _linear("ffn.2", ffn_dim, dim)


def _linear(name, in_channels, out_channels):
    return {f"{name}.weight": (out_channels, in_channels), f"{name}.bias": (out_channels,)}


def count(shapes):
    """Number of values in a table {name: shape}."""
    return sum(math.prod(shape) for shape in shapes.values())


def is_linear_weight(shape):
    """True for the weights that sharding spreads: those of the linear layers, the only ones with two axes."""
    return len(shape) == 2


def shard_count(shapes, degree):
    """Values that a process holds where linear weights are spread by rows over `degree` processes."""
    return sum(-(-shape[0] // degree) * shape[1] if is_linear_weight(shape) else math.prod(shape)
               for shape in shapes.values())


def lora_count(shapes, lora):
    """Values in the adapters that a LoRAConfig puts beside linear layers."""
    layers = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if is_linear_weight(shape)}
    return sum(lora.rank * sum(shape) for layer, shape in layers.items() if lora.fits(layer))


def umt5_count(config):
    """Number of values in a text encoder of UMT5Config."""
    dim = config.dim
    block = 2 * dim + 4 * dim * dim + 3 * dim * config.ffn_dim + config.num_buckets * config.num_heads
    return config.vocab_size * dim + config.num_layers * block + dim
