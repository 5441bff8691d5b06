"""Clips out of video files: what a file is, a clip of it at a given rate and size, and how much moves in it.

Frames are uint8 RGB. Times are in seconds from the first frame of the file. F frames, H/W height and width.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np
from av import VideoFrame

from ospnext_ms.data.decoding import Orientation, opened, orientation, upright

MOTION_WIDTH = 128
MOTION_PAIRS = 8
# Transfer curves of PQ and HLG (ITU-T H.273, table 3).
_HDR_CURVES = (16, 18)
# Containers round times, to a millisecond or so.
_RATE_TOLERANCE = 0.02


@dataclass(frozen=True)
class VideoInfo:
    """A video as it is shown, that is upright and with square pixels.

    fps: frames per second on average. seconds: from the first frame to the end of the last. times: of all frames.
    interlaced, hdr: whether its frames are made of two fields; whether its brightness is that of PQ or HLG.
    """

    width: int
    height: int
    fps: float
    seconds: float
    times: tuple[float, ...]
    interlaced: bool = False
    hdr: bool = False

    def time_of(self, number: int) -> float:
        """When frame `number`, from 0, is shown; the end of the video where it has not so many."""
        return self.times[number] if number < len(self.times) else self.seconds


def probe(path: str | os.PathLike) -> VideoInfo:
    """Reads a video's first frame and the times of all.

    Raises:
        FileNotFoundError: there is no such file; OSError: it cannot be looked for, its name is too long.
        ValueError: the file cannot be read as a video (says why).
    """
    with opened(path) as video:
        times, seconds = video.times()
        if not seconds > 0:
            raise ValueError(f"{path} does not say how long its frames are shown")
        frame = video.first_frame()
        height, width = _shown_size(frame, orientation(frame), video.pixel_aspect)
        return VideoInfo(width, height, _rate(video.declared_rate, len(times) / seconds), seconds, tuple(times),
                         bool(frame.interlaced_frame), frame.color_trc in _HDR_CURVES)


def read_clip(path: str | os.PathLike, start: float, fps: float, num_frames: int, height: int,
              width: int) -> np.ndarray:
    """A clip uint8 [F, height, width, 3]: at each time start + k / fps the nearest frame of the file, scaled and cut
    around its centre to fill the size.

    Raises:
        FileNotFoundError, OSError: as `probe`.
        ValueError: it cannot be decoded, a frame is corrupt, or the file ends before the clip does.
    """
    times = [start + k / fps for k in range(num_frames)]
    clip = np.empty((num_frames, height, width, 3), np.uint8)
    count, last = 0, None
    with opened(path) as video:
        for time, frame in video.frames(start):
            while count < num_frames and time >= times[count]:
                nearest = last[1] if last and times[count] - last[0] < time - times[count] else frame
                clip[count] = _fitted(nearest, height, width, video.pixel_aspect)
                count += 1
            if count == num_frames:
                return clip
            last = (time, frame)
        # The last frame stays on the screen as long as it says.
        shown_until = video.shown_until(*last) if last else 0.0
        while count < num_frames and last is not None and times[count] < shown_until:
            clip[count] = _fitted(last[1], height, width, video.pixel_aspect)
            count += 1
    if count < num_frames:
        raise ValueError(f"{path} ends at {shown_until:.3f} s; the clip needs frames up to {times[-1]:.3f} s")
    return clip


def draw_start(rng: np.random.Generator, part: Sequence[float], frames: int, fps: float, source_fps: float) -> float:
    """A random time in `part` (start, stop) from which a clip fits; its beginning where only that does."""
    room = part[1] - part[0] - clip_span(frames, fps, source_fps)
    return part[0] + max(room, 0.0) * float(rng.random())


def clip_span(frames: int, fps: float, source_fps: float) -> float:
    """Seconds that a clip takes: up to the beginning of its last frame, and that frame's own duration in the file."""
    return (frames - 1) / fps + 1 / source_fps


def check_decodes(path: str | os.PathLike, start: float, stop: float) -> None:
    """Decodes everything between two times; raises as `read_clip` where that fails."""
    with opened(path) as video:
        until, time = 0.0, 0.0
        for time, frame in video.frames(start):
            if time >= stop:
                return
            until = video.shown_until(time, frame)
        # The frame at `stop` need not exist: it would be the one after the last. Half a frame for rounded times.
        if until + (until - time) / 2 < stop:
            raise ValueError(f"{path} ends at {until:.3f} s, before {stop:.3f} s")


def fit(frame: np.ndarray, height: int, width: int, pixel_aspect: Fraction = Fraction(1)) -> np.ndarray:
    """Scales a frame [H, W, 3] to fill [height, width, 3] and cuts what stands over, evenly on both sides."""
    aspect = width / height / float(pixel_aspect)
    rows, columns = frame.shape[:2]
    keep_rows = max(1, min(rows, round(columns / aspect)))
    keep_columns = max(1, min(columns, round(rows * aspect)))
    top, left = (rows - keep_rows) // 2, (columns - keep_columns) // 2
    frame = frame[top : top + keep_rows, left : left + keep_columns]
    if frame.shape[:2] == (height, width):
        return frame
    shrinks = keep_rows >= height and keep_columns >= width
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def measure_motion(clip: np.ndarray, fps: float) -> float:
    """How fast a clip moves: the mean length of its optical flow (Farneback) in percent of the width per second.

    Measured on up to 8 pairs of consecutive frames, scaled to 128 pixels of width. 0 for a single frame.
    """
    pairs = sorted({round(i) for i in np.linspace(0, len(clip) - 2, min(MOTION_PAIRS, len(clip) - 1))})
    lengths = []
    for i in pairs:
        before, after = (_small_grey(frame) for frame in clip[i : i + 2])
        flow = np.empty((*before.shape, 2), np.float32)
        cv2.calcOpticalFlowFarneback(before, after, flow, 0.5, 3, 15, 3, 5, 1.2, 0)
        lengths.append(float(np.linalg.norm(flow, axis=-1).mean()))
    return 100 * fps * float(np.mean(lengths)) / MOTION_WIDTH if lengths else 0.0


def _small_grey(frame: np.ndarray) -> np.ndarray:
    height = max(round(frame.shape[0] * MOTION_WIDTH / frame.shape[1]), 16)
    return cv2.cvtColor(cv2.resize(frame, (MOTION_WIDTH, height), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


def _rate(declared: float | None, measured: float) -> float:
    """The declared rate where the frames bear it out: it is the exact one."""
    return declared if declared and abs(declared / measured - 1) < _RATE_TOLERANCE else measured


def _fitted(frame: VideoFrame, height: int, width: int, pixel_aspect: Fraction) -> np.ndarray:
    turned = orientation(frame).transposed
    return fit(upright(frame), height, width, 1 / pixel_aspect if turned else pixel_aspect)


def _shown_size(frame: VideoFrame, turn: Orientation, pixel_aspect: Fraction) -> tuple[int, int]:
    height, width = frame.height, round(frame.width * pixel_aspect)
    return (width, height) if turn.transposed else (height, width)
