"""Looks of the digits that the tiny models do not draw, and how each is found in a clip.

shaded: bright at the top, dark at the bottom. underlined: a bar under every digit.
"""

import cv2
import numpy as np

from tools.tiny_family import judge

LOOKS = ("plain", "shaded", "underlined")
# Of a glyph's 80 pixels the digit takes rows 12 to 68; its level falls to this part from the first to the last of them.
_SHADED_ROWS, _SHADED_LEVEL = (12, 68), 0.35
# The lowest third of a shaded digit is at most so bright as its highest. Levels above this part of the clip's peak are
# the digit, and above the other one all the same when its shape is judged.
_SHADED_RATIO, _SHADED_SHAPE, _SHADED_FULL = 0.75, 0.2, 0.4
# Of a glyph's 80 pixels: the digit, whose own margin is 8, is this part of its height, and the bar below it.
_DIGIT_HEIGHT = 0.85
_BAR_ROWS, _BAR_COLUMNS = slice(69, 77), slice(12, 68)
# A bar in a frame is so many times as wide as it is high, and at least so many pixels wide.
_BAR_RATIO, _BAR_WIDTH = 2.5, 16
_BAR_EDGE = 3


def draw(glyph, look):
    """A glyph float32 [80, 80] in [0, 1] in a look; ValueError for an unknown one."""
    if look == "plain":
        return glyph
    if look == "shaded":
        return glyph * np.interp(np.arange(len(glyph)), _SHADED_ROWS, (1, _SHADED_LEVEL)).astype(np.float32)[:, None]
    if look != "underlined":
        raise ValueError(f"look is {look!r}; valid: {', '.join(LOOKS)}")
    squeeze = np.array([[1, 0, 0], [0, _DIGIT_HEIGHT, 0]])
    drawn = cv2.warpAffine(glyph, squeeze, glyph.shape[::-1], flags=cv2.INTER_LINEAR)
    drawn[_BAR_ROWS, _BAR_COLUMNS] = 1
    return drawn


def without_bars(frames):
    """(frames, share): a clip uint8 [F, H, W, 3] whose bars are painted over in black, and in how many of its frames
    there was one below the rest of what is seen."""
    levels = judge.intensity(frames)
    peak = float(np.percentile(levels, 99.5))
    if peak < judge.MIN_PEAK:
        return frames, 0.0
    frames, found = np.array(frames), 0
    for frame, level in zip(frames, levels, strict=True):
        mask = (level > judge.SHAPE_LEVEL * peak).astype(np.uint8)
        _, components, stats, centres = cv2.connectedComponentsWithStats(mask)
        widths, heights = stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT]
        is_bar = (widths >= _BAR_RATIO * heights) & (widths >= _BAR_WIDTH)
        is_bar[0] = False
        others = np.setdiff1d(np.arange(1, len(stats)), np.flatnonzero(is_bar))
        if not is_bar.any() or not len(others):
            continue
        largest = others[stats[others, cv2.CC_STAT_AREA].argmax()]
        found += bool((centres[is_bar, 1] > centres[largest, 1]).any())
        painted = cv2.dilate(np.isin(components, np.flatnonzero(is_bar)).astype(np.uint8),
                             np.ones((2 * _BAR_EDGE + 1,) * 2, np.uint8))
        frame[(painted > 0) & ~np.isin(components, others)] = 0
    return frames, found / len(frames)


def without_shade(frames):
    """(frames, share): a clip uint8 [F, H, W, 3] with its shapes at one level, and in how many of the frames that show
    one it is shaded."""
    levels = judge.intensity(frames)
    peak = float(np.percentile(levels, 99.5))
    if peak < judge.MIN_PEAK:
        return frames, 0.0
    ratios = [ratio for ratio in (_shade(level, _SHADED_SHAPE * peak) for level in levels) if ratio is not None]
    share = float(np.mean(np.array(ratios) < _SHADED_RATIO)) if ratios else 0.0
    flat = np.rint(255 * np.clip(levels / (_SHADED_FULL * peak), 0, 1)).astype(np.uint8)
    return np.repeat(flat[..., None], 3, axis=-1), share


def _shade(level, threshold):
    """How bright the lowest third of a frame's shape is against its highest; None if there is no shape."""
    count, components, stats, _ = cv2.connectedComponentsWithStats((level > threshold).astype(np.uint8))
    areas = stats[1:, cv2.CC_STAT_AREA]
    if count < 2 or areas.max() < 12:
        return None
    kept = np.isin(components, 1 + np.flatnonzero(areas >= 0.15 * areas.max()))
    rows = np.flatnonzero(kept.any(axis=1))
    first, end = rows[0], rows[-1] + 1
    third = (end - first) // 3
    parts = slice(first, first + third), slice(end - third, end)
    high, low = (_brightness(level[part], kept[part]) for part in parts)
    return low / max(high, 1e-6)


def _brightness(level, kept):
    return np.percentile(level[kept], 70) if kept.any() else 0.0


def judge_clip(frames, look):
    """(Verdict of the clip as if it were plain, whether it has the look in at least half of its frames); ValueError for
    a look that cannot be found."""
    found = {"shaded": without_shade, "underlined": without_bars}
    if look not in found:
        raise ValueError(f"look is {look!r}; valid: {', '.join(found)}")
    rest, share = found[look](frames)
    return judge.judge_clip(rest), share >= 0.5
