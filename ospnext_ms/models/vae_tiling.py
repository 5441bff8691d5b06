"""Large frames in overlapping tiles: positions, and the cross-fade that joins neighbours."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


def tile_spans(length, tile, overlap):
    """(start, stop) of the tiles along one axis, all of one length; the last ends at the border and overlaps more."""
    if length <= tile:
        return [(0, length)]
    starts = [*range(0, length - tile, tile - overlap), length - tile]
    return [(start, start + tile) for start in starts]


def apply_tiled(function, x_BCTHW, tile, overlap, scale, map_tiles=map):
    """`function` on tiles of the frames, joined by cross-fades.

    Args:
        function: maps [B, C, T, h, w] to [B, C', T', h * scale, w * scale].
        x_BCTHW: input [B, C, T, H, W].
        tile, overlap: in pixels of the input.
        scale: Fraction, pixels of the output for one of the input.
        map_tiles: as the builtin `map`, where the tiles are not all computed here.
    """
    rows, columns = (tile_spans(size, tile, overlap) for size in x_BCTHW.shape[3:])
    tiles = (x_BCTHW[:, :, :, top:bottom, left:right] for top, bottom in rows for left, right in columns)
    results = iter(map_tiles(function, tiles))
    canvas = None
    for top, _ in rows:
        row = None
        for left, _ in columns:
            done = next(results)
            row = done if row is None else crossfade(row, done, int(left * scale), axis=4)
        canvas = row if canvas is None else crossfade(canvas, row, int(top * scale), axis=3)
    return canvas


def crossfade(before, after, start, axis):
    """`before` continued by `after`, which begins at `start` of it; linear weights where both are there.

    Equal everywhere but along `axis`; returns the union, start + after.shape[axis] long.
    """
    shared = before.shape[axis] - start
    assert 0 <= shared <= after.shape[axis]
    if shared == 0:
        return ops.cat((before, after), axis)
    ramp_shape = [1] * before.ndim
    ramp_shape[axis] = shared
    ramp = Tensor(((np.arange(shared) + 0.5) / shared).reshape(ramp_shape), ms.float32)
    kept, faded = ops.split(before, (start, shared), axis) if start else (None, before)
    risen, rest = ops.split(after, (shared, after.shape[axis] - shared), axis)
    parts = [faded + (risen - faded) * ramp, rest]
    return ops.cat(parts if kept is None else [kept, *parts], axis)
