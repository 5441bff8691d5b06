"""Looks at a clip and says which digit it shows and where that moves.

The digit: the bright shape of a frame is cropped to its bounding box, scaled to 16x16 pixels and classified by a
support vector machine trained on the training scans; the scores are averaged over the frames. The direction: from
where the shape's centre of mass starts to where it ends. Knows nothing of captions, models or files.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from sklearn.svm import SVC

from tools.tiny_family import digits

CROP_SIZE = 16
JUDGED_FRAMES = 9
MIN_PEAK = 0.12
SHAPE_LEVEL = 0.35
STILL_PIXELS = 8.0


@dataclass(frozen=True)
class Verdict:
    """What a clip shows. Where nothing is bright enough to see, `digit` is -1 and `direction` is "nothing"."""

    digit: int
    direction: str
    digit_scores: tuple
    displacement: tuple

    @property
    def digit_probabilities(self):
        """Softmax of the classifier's scores: a smooth confidence, not a calibrated one."""
        weights = np.exp(np.asarray(self.digit_scores) - max(self.digit_scores))
        return weights / weights.sum()


NOTHING = Verdict(-1, "nothing", (0.0,) * 10, (0.0, 0.0))


def intensity(frames):
    """uint8 [F, H, W, 3] -> float32 [F, H, W] in [0, 1]: the brightest of the three colours."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}; valid: uint8 [F, H, W, 3]")
    return frames.max(axis=-1).astype(np.float32) / 255


def crop_shape(frame, peak):
    """The bright shape of one frame, float32 [16, 16] with its brightest pixel at about 1; None if there is none."""
    mask = (frame > SHAPE_LEVEL * peak).astype(np.uint8)
    count, components, stats, _ = cv2.connectedComponentsWithStats(mask)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if count < 2 or areas.max() < 12:
        return None
    kept = np.isin(components, 1 + np.flatnonzero(areas >= 0.15 * areas.max()))
    rows, columns = np.flatnonzero(kept.any(1)), np.flatnonzero(kept.any(0))
    top, left = rows[0], columns[0]
    height, width = rows[-1] + 1 - top, columns[-1] + 1 - left
    side = max(height, width) + 2
    square = np.zeros((side, side), np.float32)
    y, x = (side - height) // 2, (side - width) // 2
    shape = np.where(kept, frame, 0)[top : top + height, left : left + width]
    square[y : y + height, x : x + width] = shape / max(np.percentile(shape, 98), 1e-6)
    return cv2.resize(np.clip(square, 0, 1), (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_AREA)


def displacement(levels, peak):
    """Path of the centre of mass, in pixels (x right, y down), from the first to the last quarter of the clip."""
    weights = np.clip(levels - SHAPE_LEVEL * peak, 0, None)
    mass = weights.sum(axis=(1, 2))
    visible = np.flatnonzero(mass > 0)
    if len(visible) < 2:
        return 0.0, 0.0
    weights, mass = weights[visible], mass[visible]
    x = (weights.sum(axis=1) @ np.arange(levels.shape[2])) / mass
    y = (weights.sum(axis=2) @ np.arange(levels.shape[1])) / mass
    ends = max(1, len(visible) // 4)
    return tuple(float(c[-ends:].mean() - c[:ends].mean()) for c in (x, y))


def direction_of(displacement_xy):
    """The caption's word for a displacement; shorter than 8 pixels is "still"."""
    x, y = displacement_xy
    if max(abs(x), abs(y)) < STILL_PIXELS:
        return "still"
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


@lru_cache(maxsize=1)
def digit_classifier():
    """A support vector machine on the crops of rendered training scans (a few seconds to train, always the same)."""
    glyphs, labels = digits.load_glyphs()["train"]
    rng = np.random.default_rng(0)
    crops, targets = [], []
    for _ in range(3):
        for glyph, label in zip(glyphs, labels, strict=True):
            crops.append(_crop_of_glyph(glyph, rng))
            targets.append(label)
    return SVC(C=10.0, gamma="scale", random_state=0).fit(np.stack(crops).reshape(len(crops), -1), targets)


def _crop_of_glyph(glyph, rng):
    """A scan as it may look in a clip: any size and place, a little blurred, as a decoder would leave it."""
    size = rng.uniform(digits.SIZES["small"], digits.SIZES["large"])
    x, y = rng.uniform(0, digits.FRAME_SIZE - size, 2)
    frame = digits.place_glyph(glyph, size, x, y)
    blur = rng.uniform(0, 1.2)
    if blur > 0.3:
        frame = cv2.GaussianBlur(frame, (0, 0), blur)
    return crop_shape(frame, float(frame.max()))


def scan_accuracy(split="held_out", seed=1):
    """Share of single rendered scans of a split that the classifier names right."""
    rng = np.random.default_rng(seed)
    glyphs, labels = digits.load_glyphs()[split]
    crops = np.stack([_crop_of_glyph(glyph, rng).ravel() for glyph in glyphs])
    return float((digit_classifier().predict(crops) == labels).mean())


def judge_clip(frames):
    """uint8 [F, H, W, 3] -> Verdict."""
    levels = intensity(frames)
    peak = float(np.percentile(levels, 99.5))
    if peak < MIN_PEAK:
        return NOTHING
    chosen = np.unique(np.linspace(0, len(levels) - 1, JUDGED_FRAMES).round().astype(int))
    crops = [crop for crop in (crop_shape(levels[i], peak) for i in chosen) if crop is not None]
    if not crops:
        return NOTHING
    scores = digit_classifier().decision_function(np.stack(crops).reshape(len(crops), -1)).mean(axis=0)
    path = displacement(levels, peak)
    return Verdict(int(scores.argmax()), direction_of(path), tuple(map(float, scores)), path)
