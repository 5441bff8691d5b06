"""A look of the digits that the tiny models do not draw, and how it is found in a clip: a bar under every digit."""

import cv2
import numpy as np

from tools.tiny_family import judge

LOOKS = ("plain", "underlined")
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


def judge_clip(frames):
    """(Verdict of what is left without bars, whether the clip is underlined in at least half of its frames)."""
    rest, share = without_bars(frames)
    return judge.judge_clip(rest), share >= 0.5
