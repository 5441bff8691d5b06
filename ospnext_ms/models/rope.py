"""Rotary position embedding on (t, h, w). B batch, N tokens, H heads, D head width."""

import numpy as np

THETA = 10000.0


def rope_table(grid, head_dim, order=None):
    """Cosines and sines of every token's rotation angles.

    The D/2 complex pairs are split into D/2 - 2*floor(D/6), floor(D/6), floor(D/6) for t, h, w; frequency i of a part
    of n pairs is THETA^(-i/n) (Wan2.1, arXiv 2503.20314). Computed in float64.

    Args:
        grid: (T, H, W). head_dim: D, even. order: natural indices of the rows wanted, default all in natural order.

    Returns:
        (cos, sin), NumPy fp32 [N, D/2].
    """
    pairs = head_dim // 2
    spatial = head_dim // 6
    angles = []
    positions = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 3)
    for axis, n in enumerate((pairs - 2 * spatial, spatial, spatial)):
        frequencies = THETA ** (-np.arange(n) / n) if n else np.zeros(0)
        angles.append(positions[:, axis, None] * frequencies)
    angles = np.concatenate(angles, -1)
    if order is not None:
        angles = angles[order]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
