"""Skiparse-2D as the paper draws it: zero-pad the grid to multiples of P^2, rearrange, mask the padded keys.

Legend: B batch, S sub-sequences (1 or P^2), N tokens of one sub-sequence, C width, P sparse ratio, T/h/w grid, D head
width. A sequence x_BSNC stands in one of three layouts. With a padded row h = (i*P + p)*P + a and a padded column
w = (j*P + q)*P + c:
"full": S = 1, N = T*h*w, natural order, nothing padded; "token": sub-sequence (a, c); "group": sub-sequence (p, q).
Source: arXiv 2605.28691, Skiparse-2D attention.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange

ROPE_THETA = 10000.0

_GRID = "b t (i p a) (j q c) d"
_SUB_SEQUENCES = {"token": "b (a c) (t i p j q) d", "group": "b (p q) (t i a j c) d"}


def padded_size(size, sparse_ratio):
    """`size` rounded up to a multiple of P^2."""
    tile = sparse_ratio**2
    return -(-size // tile) * tile


def relayout(x_BSNC, source, target, grid, sparse_ratio):
    """Brings x from layout `source` to layout `target` ("full", "token" or "group"); pads and crops where needed.

    `grid` is (T, h, w), not padded. Token <-> group is the exchange of the two parts of each row and column index.
    """
    if source == target:
        return x_BSNC
    frames, height, width = grid
    padded_height, padded_width = padded_size(height, sparse_ratio), padded_size(width, sparse_ratio)
    axes = {"t": frames, "i": padded_height // sparse_ratio**2, "j": padded_width // sparse_ratio**2,
            **dict.fromkeys("pqac", sparse_ratio)}
    if source == "full":
        x = rearrange(x_BSNC, "b 1 (t h w) d -> b t h w d", t=frames, h=height)
        x = F.pad(x, (0, 0, 0, padded_width - width, 0, padded_height - height))
        return rearrange(x, f"{_GRID} -> {_SUB_SEQUENCES[target]}", **axes)
    if target == "full":
        x = rearrange(x_BSNC, f"{_SUB_SEQUENCES[source]} -> {_GRID}", **axes)
        return rearrange(x[:, :, :height, :width], "b t h w d -> b 1 (t h w) d")
    return rearrange(x_BSNC, f"{_SUB_SEQUENCES[source]} -> {_SUB_SEQUENCES[target]}", **axes)


@dataclass(frozen=True)
class Layout:
    """What self-attention must know of a layout: rotary tables cos/sin [S, N, D/2] fp32 and the mask of real keys.

    `is_real` is bool [S, N]; `key_mask` is what attention gets: None where nothing is padded, else bool [S, N]. In a
    sub-sequence of padding only (grids smaller than P^2) every key counts, so that its softmax stays finite; nobody
    reads its result.
    """

    cos_SNd: torch.Tensor
    sin_SNd: torch.Tensor
    is_real_SN: torch.Tensor
    key_mask_SN: torch.Tensor | None


def build_layouts(grid, sparse_ratio, head_dim, device):
    """Layouts "full", "token" and "group" of a (T, h, w) grid, as a dict."""
    cos_hwd, sin_hwd = _rotary_tables(grid, head_dim)
    real = torch.ones(1, 1, cos_hwd.shape[2], 1, dtype=torch.float64)
    layouts = {}
    for name in ("full", "token", "group"):
        cos, sin, is_real = (relayout(table, "full", name, grid, sparse_ratio)[0] for table in (cos_hwd, sin_hwd, real))
        is_real = is_real[..., 0] > 0
        key_mask = None if is_real.all() else (is_real | ~is_real.any(dim=1, keepdim=True)).to(device)
        layouts[name] = Layout(cos.float().to(device), sin.float().to(device), is_real.to(device), key_mask)
    return layouts


def _rotary_tables(grid, head_dim):
    """cos and sin [1, 1, T*h*w, D/2] in float64; D/2 angles split into D/2 - 2*(D//6), D//6, D//6 for t, h, w."""
    third = head_dim // 6
    parts = (head_dim // 2 - 2 * third, third, third)
    positions = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in grid), indexing="ij")
    angles = [
        position[..., None] * ROPE_THETA ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        for position, pairs in zip(positions, parts, strict=True)
    ]
    angles = rearrange(torch.cat(angles, dim=-1), "t h w d -> 1 1 (t h w) d")
    return angles.cos(), angles.sin()
