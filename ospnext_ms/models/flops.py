"""Floating-point operations of a DiT forward, counted from its shapes. A multiply-add counts as two."""

from collections.abc import Sequence

from ospnext_ms.models.config import DiTConfig
from ospnext_ms.skiparse import SkiparsePlan


def forward_flops(config: DiTConfig, grid: Sequence[int]) -> dict[str, int]:
    """Operations of one forward of one sample: linears and attention of all blocks, embeddings and head.

    Args:
        config: DiTConfig. grid: (T, H, W) tokens.

    Returns:
        {"linear": int, "attention": int, "total": int}. Norms, modulation and other elementwise work are left out.
    """
    plan = SkiparsePlan(grid, config.sparse_ratio)
    tokens, dim, text_len = plan.num_tokens, config.dim, config.text_len
    patch = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    video = tokens * (6 * dim * dim + 2 * dim * config.ffn_dim)
    text = text_len * 2 * dim * dim
    ends = tokens * dim * patch * (config.in_channels + config.out_channels)
    ends += text_len * (config.text_dim * dim + dim * dim) + config.freq_dim * dim + dim * dim + 6 * dim * dim
    pairs = {
        "full": tokens**2,
        "token": sum(n * n for n in plan.token_lengths),
        "group": sum(n * n for n in plan.group_lengths),
    }
    attended = sum(pairs[pattern] + tokens * text_len for pattern in config.block_patterns)
    linear = 2 * (config.num_layers * (video + text) + ends)
    attention = 4 * dim * attended
    return {"linear": linear, "attention": attention, "total": linear + attention}


def model_flops_utilisation(forward_flops: int, samples: int, seconds: float, peak_tflops: float,
                            devices: int) -> float:
    """Share of the peak that useful work takes: forward and twice as much backward; recomputation does not count."""
    return 3 * forward_flops * samples / (seconds * peak_tflops * 1e12 * devices)
