"""Rewards that need no download: how smoothly a video moves, and guards that notice when it turns to mush or glare.

All scores lie in [0, 1]. Frames are uint8 [B, F, H, W, 3].
"""

import cv2
import numpy as np

# Share of a video's contrast below which a change from frame to frame counts as none.
STILL = 0.02


class MotionSmoothness:
    """1 where every frame lies half-way between its neighbours, less where brightness jumps from frame to frame.

    score = 1 / (1 + roughness / tolerance), roughness being the mean distance of a frame from the mean of its two
    neighbours as a share of the mean change from frame to frame (plus 2 % of the video's contrast, the standard
    deviation of its grey levels, so that a still video scores 1). A darker copy of a video has the video's score.
    """

    def __init__(self, tolerance=1.0):
        if not tolerance > 0:
            raise ValueError(f"tolerance is {tolerance}; it must be above 0")
        self.tolerance = tolerance

    def __call__(self, frames, prompts):
        scores = [self._score(_grey(video)) for video in frames]
        return scores, {"motion_smoothness": scores}

    def _score(self, levels):
        if len(levels) < 3:
            raise ValueError(f"a video has {len(levels)} frames; motion smoothness needs at least 3")
        change = np.abs(np.diff(levels, axis=0)).mean()
        roughness = np.abs(levels[1:-1] - (levels[:-2] + levels[2:]) / 2).mean()
        scale = change + STILL * levels.std()
        return float(1 / (1 + roughness / (self.tolerance * scale))) if scale > 0 else 1.0


class Sharpness:
    """Guard: falls from 1 towards 0 as the video loses the detail that `reference` stands for.

    score = min(1, detail / reference), detail being the standard deviation of the Laplacian of the grey levels (0 to
    255), averaged over the frames. `reference`: that of videos that are sharp enough.
    """

    def __init__(self, reference):
        if not reference > 0:
            raise ValueError(f"reference is {reference}; it must be above 0")
        self.reference = reference

    def __call__(self, frames, prompts):
        details = [np.mean([cv2.Laplacian(frame, cv2.CV_32F).std() for frame in _grey(video)]) for video in frames]
        scores = [float(min(1.0, detail / self.reference)) for detail in details]
        return scores, {"sharpness": scores}


class Exposure:
    """Guard: 1 while the mean grey level of the video (0 to 1) lies in [low, high], falling to 0 at black and white."""

    def __init__(self, low, high):
        if not 0 <= low < high <= 1:
            raise ValueError(f"low is {low} and high {high}; they must be numbers with 0 <= low < high <= 1")
        self.low, self.high = low, high

    def __call__(self, frames, prompts):
        scores = [self._score(_grey(video).mean() / 255) for video in frames]
        return scores, {"exposure": scores}

    def _score(self, level):
        if level < self.low:
            return float(level / self.low)
        if level > self.high:
            return float((1 - level) / (1 - self.high))
        return 1.0


def _grey(video):
    """uint8 [F, H, W, 3] -> float32 [F, H, W], luma of BT.601."""
    return video.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
