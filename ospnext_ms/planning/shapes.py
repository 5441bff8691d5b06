"""How many parameters a run holds, from the networks' configurations."""

import math

from ospnext_ms.models.config import DiTConfig, UMT5Config
from ospnext_ms.models.lora_config import LoRAConfig
from ospnext_ms.models.parameters import Shape, Shapes, dit_shapes, umt5_shapes


def dit_parameters(config: DiTConfig) -> Shapes:
    """{name: shape} of a transformer of DiTConfig, in Wan2.1's names."""
    return dit_shapes(dim=config.dim, ffn_dim=config.ffn_dim, num_layers=config.num_layers, freq_dim=config.freq_dim,
                      text_dim=config.text_dim, in_channels=config.in_channels, out_channels=config.out_channels,
                      patch_size=config.patch_size)


def count(shapes: Shapes) -> int:
    """Number of values in a table {name: shape}."""
    return sum(math.prod(shape) for shape in shapes.values())


def is_linear_weight(shape: Shape) -> bool:
    """True for the weights that sharding spreads: those of the linear layers, the only ones with two axes."""
    return len(shape) == 2


def shard_count(shapes: Shapes, degree: int) -> int:
    """Values that a process holds where linear weights are spread by rows over `degree` processes."""
    return sum(-(-shape[0] // degree) * shape[1] if is_linear_weight(shape) else math.prod(shape)
               for shape in shapes.values())


def lora_count(shapes: Shapes, lora: LoRAConfig | None) -> int:
    """Values in the adapters that a LoRAConfig puts beside linear layers; none without one."""
    if lora is None:
        return 0
    layers = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if is_linear_weight(shape)}
    return sum(lora.rank * sum(shape) for layer, shape in layers.items() if lora.fits(layer))


def umt5_count(config: UMT5Config) -> int:
    """Number of values in a text encoder of UMT5Config."""
    return count(umt5_shapes(vocab_size=config.vocab_size, dim=config.dim, ffn_dim=config.ffn_dim,
                             num_heads=config.num_heads, num_layers=config.num_layers, num_buckets=config.num_buckets))
