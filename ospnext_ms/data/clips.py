"""Clips out of video files: what a file is, a clip of it at a given rate and size, and how much moves in it.

Frames are uint8 RGB. Times are in seconds from the first frame of the file. F frames, H/W height and width.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

MOTION_WIDTH = 128
MOTION_PAIRS = 8


@dataclass(frozen=True)
class VideoInfo:
    """A video as it is shown, that is after its rotation and with square pixels."""

    width: int
    height: int
    fps: float
    seconds: float


def probe(path) -> VideoInfo:
    """Reads a video's headers and its first frame.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as a video (says why).
    """
    with _opened(path) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise ValueError(f"{path} holds no frames")
        fps = stream.average_rate or stream.guessed_rate
        if not fps:
            raise ValueError(f"{path} does not say its frame rate")
        height, width = _shown_size(frame, _pixel_aspect(stream))
        return VideoInfo(width, height, float(fps), _duration(container, stream, fps, path))


def read_clip(path, start, fps, num_frames, height, width):
    """A clip uint8 [F, height, width, 3]: at each time start + k / fps the nearest frame of the file, scaled and cut
    around its centre to fill the size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded, a frame is corrupt, or the file ends before the clip does.
    """
    times = [start + k / fps for k in range(num_frames)]
    clip = np.empty((num_frames, height, width, 3), np.uint8)
    count, last = 0, None
    with _opened(path) as (container, stream):
        aspect = _pixel_aspect(stream)
        for time, frame in _frames_around(container, stream, start, path):
            while count < num_frames and time >= times[count]:
                is_nearer = last is not None and times[count] - last[0] < time - times[count]
                clip[count] = _fitted(last[1] if is_nearer else frame, height, width, aspect)
                count += 1
            if count == num_frames:
                return clip
            last = (time, frame)
        # The last frame stays on the screen for one frame's duration.
        shown_until = last[0] + 1 / float(stream.average_rate or fps) if last else 0.0
    while count < num_frames and last is not None and times[count] < shown_until:
        clip[count] = _fitted(last[1], height, width, aspect)
        count += 1
    if count < num_frames:
        raise ValueError(f"{path} ends at {shown_until:.3f} s; the clip needs frames up to {times[-1]:.3f} s")
    return clip


def draw_start(rng, part, frames, fps, source_fps):
    """A random time in `part` (start, stop) from which a clip fits; its beginning where only that does."""
    room = part[1] - part[0] - clip_span(frames, fps, source_fps)
    return part[0] + max(room, 0.0) * float(rng.random())


def clip_span(frames, fps, source_fps):
    """Seconds that a clip takes: up to the beginning of its last frame, and that frame's own duration in the file."""
    return (frames - 1) / fps + 1 / source_fps


def check_decodes(path, start, stop):
    """Decodes everything between two times; raises as `read_clip` where that fails."""
    with _opened(path) as (container, stream):
        time = -math.inf
        # The frame at `stop` need not exist: it would be the one after the last.
        margin = 1.5 / float(stream.average_rate or 1)
        for time, _ in _frames_around(container, stream, start, path):
            if time >= stop:
                return
        if time + margin < stop:
            raise ValueError(f"{path} ends at {time:.3f} s, before {stop:.3f} s")


def fit(frame, height, width, pixel_aspect=Fraction(1)):
    """Scales a frame [H, W, 3] to fill [height, width, 3] and cuts what stands over, evenly on both sides."""
    aspect = width / height / float(pixel_aspect)
    rows, columns = frame.shape[:2]
    keep_rows, keep_columns = min(rows, round(columns / aspect)), min(columns, round(rows * aspect))
    top, left = (rows - keep_rows) // 2, (columns - keep_columns) // 2
    frame = frame[top : top + keep_rows, left : left + keep_columns]
    if frame.shape[:2] == (height, width):
        return frame
    shrinks = keep_rows >= height and keep_columns >= width
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def measure_motion(clip, fps):
    """How fast a clip moves: the mean length of its optical flow (Farneback) in percent of the width per second.

    Measured on up to 8 pairs of consecutive frames, scaled to 128 pixels of width. 0 for a single frame.
    """
    pairs = sorted({round(i) for i in np.linspace(0, len(clip) - 2, min(MOTION_PAIRS, len(clip) - 1))})
    lengths = []
    for i in pairs:
        before, after = (_small_grey(frame) for frame in clip[i : i + 2])
        flow = cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        lengths.append(float(np.linalg.norm(flow, axis=-1).mean()))
    return 100 * fps * float(np.mean(lengths)) / MOTION_WIDTH if lengths else 0.0


def _small_grey(frame):
    height = max(round(frame.shape[0] * MOTION_WIDTH / frame.shape[1]), 16)
    return cv2.cvtColor(cv2.resize(frame, (MOTION_WIDTH, height), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


class _opened:
    """Context of (container, first video stream); errors of FFmpeg become ValueErrors that name the file."""

    def __init__(self, path):
        self.path = Path(path)

    def __enter__(self):
        if not self.path.is_file():
            raise FileNotFoundError(f"no video file {self.path}")
        try:
            self.container = av.open(str(self.path))
        except av.error.FFmpegError as error:
            raise ValueError(f"{self.path} cannot be opened as a video: {error}") from error
        if not self.container.streams.video:
            self.container.close()
            raise ValueError(f"{self.path} holds no video stream")
        stream = self.container.streams.video[0]
        # Parallel work is spread over files; threads inside each would only wait for one another.
        stream.codec_context.thread_count = 1
        return self.container, stream

    def __exit__(self, kind, error, trace):
        self.container.close()
        if isinstance(error, av.error.FFmpegError):
            raise ValueError(f"{self.path} cannot be decoded: {error}") from error


def _frames_around(container, stream, start, path):
    """Yields (time, frame) from the last key frame at or before `start` on, in order of display."""
    if start > 0:
        origin = stream.start_time or 0
        container.seek(origin + int(start / stream.time_base), stream=stream, backward=True)
    is_first = True
    for time, frame in _timed_frames(container, stream):
        if is_first and start > 0 and time > start:
            # Some files have no usable index: seeking went too far.
            container.seek(stream.start_time or 0, stream=stream, backward=True)
            yield from _checked(_timed_frames(container, stream), path)
            return
        is_first = False
        yield from _checked([(time, frame)], path)


def _timed_frames(container, stream):
    origin = stream.start_time or 0
    for frame in container.decode(stream):
        # Containers without display times (AVI) have decoding times at least.
        stamp = frame.dts if frame.pts is None else frame.pts
        if stamp is None:
            raise ValueError(f"{container.name} has a frame without a time")
        yield float((stamp - origin) * stream.time_base), frame


def _checked(frames, path):
    for time, frame in frames:
        if frame.is_corrupt:
            raise ValueError(f"{path} has a corrupt frame at {time:.3f} s")
        yield time, frame


def _fitted(frame, height, width, pixel_aspect):
    turns = _quarter_turns(frame)
    array = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
    return fit(array, height, width, 1 / pixel_aspect if turns % 2 else pixel_aspect)


def _quarter_turns(frame):
    """Counter-clockwise quarter turns after which the frame stands as it should."""
    return round(frame.rotation / 90) % 4


def _pixel_aspect(stream):
    """Width of a pixel over its height, in the file's own orientation."""
    return stream.sample_aspect_ratio or Fraction(1)


def _shown_size(frame, pixel_aspect):
    height, width = frame.height, round(frame.width * pixel_aspect)
    return (width, height) if _quarter_turns(frame) % 2 else (height, width)


def _duration(container, stream, fps, path):
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if stream.frames:
        return stream.frames / float(fps)
    if container.duration:
        return container.duration / av.time_base
    raise ValueError(f"{path} does not say how long it is")
