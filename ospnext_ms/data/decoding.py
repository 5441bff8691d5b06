"""A video file as FFmpeg decodes it: frames with their times, upright, and nothing taken on the container's word.

Containers say how long a stream is, how many frames it has a second and where its key frames lie; many do not, or say
it of the sound, or wrongly. Times here are those of the packets and frames themselves, in seconds from the first frame
that can be decoded.
"""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
from av import Packet, VideoFrame

# How far before a wanted time the second attempt to seek aims: more than most distances of key frames.
_STEP_BACK_SECONDS = 10.0
# Containers count pictures that are never shown (VP8), or none at all for some (packed B-frames of MPEG-4).
_CODECS_OF_UNEVEN_PACKETS = frozenset({"vp8", "mpeg4"})
# Containers that say when a picture is decoded; where pictures are reordered that is not when it is shown.
_DECODING_TIMES_ONLY = frozenset({"avi"})
# Seconds from the first frame, and the frame.
TimedFrames = Iterator[tuple[float, VideoFrame]]
Item = TypeVar("Item", VideoFrame, Packet)


@dataclass(frozen=True)
class Orientation:
    """How a decoded picture is brought upright: rows and columns exchanged, then mirrored left to right, or upside
    down."""

    transposed: bool = False
    mirrored: bool = False
    flipped: bool = False

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """The picture [H, W, 3] as it is shown: [H, W, 3], or [W, H, 3] where transposed."""
        picture = picture.swapaxes(0, 1) if self.transposed else picture
        picture = picture[:, ::-1] if self.mirrored else picture
        return np.ascontiguousarray(picture[::-1] if self.flipped else picture)


def orientation(frame: VideoFrame) -> Orientation:
    """Of a frame's display matrix: x' = a x + c y, y' = b x + d y. ValueError where it turns by less than a quarter."""
    data = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return Orientation()
    (a, b), (c, d) = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2].astype(float)
    straight, crossed = abs(a) + abs(d), abs(b) + abs(c)
    # One degree, as ffmpeg allows.
    if min(straight, crossed) > math.tan(math.radians(1)) * max(straight, crossed):
        raise ValueError(f"it is to be shown turned by {math.degrees(math.atan2(b, a)):.1f} degrees, which only whole "
                         "quarter turns can be")
    return Orientation(True, c < 0, b < 0) if crossed > straight else Orientation(False, a < 0, d < 0)


def upright(frame: VideoFrame) -> np.ndarray:
    """A decoded frame as it is shown: uint8 RGB [height, width, 3]."""
    return orientation(frame).apply(frame.to_ndarray(format="rgb24"))


@contextmanager
def opened(path: str | os.PathLike) -> Iterator["VideoFile"]:
    """Context of a VideoFile; what FFmpeg raises becomes a ValueError that names the file.

    Raises:
        FileNotFoundError: there is no such file; OSError: it cannot be looked for, its name is too long.
        ValueError: it cannot be opened or decoded as a video, or holds none (says why).
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no video file {path}")
    video = VideoFile(path)
    try:
        yield video
    except av.error.FFmpegError as error:
        raise ValueError(f"{path} cannot be decoded: {error}") from error
    finally:
        video.container.close()


class VideoFile:
    """The first video stream of an open file. Made by `opened`.

    Attributes: path, container, stream, pixel_aspect (width of a pixel over its height, as stored).
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self._open()

    @property
    def pixel_aspect(self) -> Fraction:
        return self.stream.sample_aspect_ratio or Fraction(1)

    @property
    def declared_rate(self) -> float | None:
        """Frames per second by the container's word, None where it has none."""
        rate = self.stream.average_rate or self.stream.guessed_rate
        return float(rate) if rate else None

    @property
    def _numbered(self) -> bool:
        """Whether frames have no times of their own and are as far apart as they last."""
        return (self.container.format.name in _DECODING_TIMES_ONLY and self.stream.codec_context.has_b_frames
                or self.stream.start_time is None)

    def decoded(self) -> Iterator[VideoFrame]:
        """Frames as they come, from where the container stands."""
        return _guarded(self.container.decode(self.stream), self.path)

    def first_frame(self) -> VideoFrame:
        """The first frame that can be decoded. ValueError where there is none."""
        self._rewind()
        frame = next(self.decoded(), None)
        if frame is None:
            raise ValueError(f"{self.path} holds no frames")
        return frame

    def frames(self, start: float = 0.0) -> Iterator:
        """Yields (time, frame) in the order of display, from a frame at or before `start` on.

        A frame that is not later than the one before it is left out, as players do.

        Raises:
            ValueError: a frame is corrupt.
        """
        last = -math.inf
        for time, frame in self._sought(start) or self._from_the_beginning():
            if frame.is_corrupt:
                raise ValueError(f"{self.path} has a corrupt frame at {time:.3f} s")
            if time > last:
                yield time, frame
                last = time

    def shown_until(self, time: float, frame: VideoFrame) -> float:
        """When a frame that begins at `time` goes, by its own duration, or by the frame rate where it has none."""
        if frame.duration:
            return time + float(frame.duration * self.stream.time_base)
        return time + (1 / self.declared_rate if self.declared_rate else 0.0)

    def times(self) -> tuple[list[float], float]:
        """(times of all frames, the end of the last), in the order of display.

        They are those of the packets, which need no decoding, where each packet is a frame and has a time of display.
        """
        first = self.first_frame()
        uneven = first.interlaced_frame or self.stream.codec_context.name in _CODECS_OF_UNEVEN_PACKETS
        packets = None if uneven or self._numbered else self._timed_packets()
        if packets is None:
            return self._times_of_all_frames()
        # Packets before the first frame belong to pictures that begin before the file does.
        packets = [packet for packet in packets if packet[0] >= first.pts] or [(first.pts, 0)]
        times = [float((stamp - first.pts) * self.stream.time_base) for stamp, _ in packets]
        last = float(packets[-1][1] * self.stream.time_base)
        last = last or (times[-1] - times[-2] if len(times) > 1 else self.shown_until(0.0, first))
        return times, times[-1] + last

    def _open(self) -> None:
        try:
            self.container = av.open(str(self.path))
        except (av.error.FFmpegError, UnicodeError) as error:
            raise ValueError(f"{self.path} cannot be opened as a video: {error}") from error
        if not self.container.streams.video:
            self.container.close()
            raise ValueError(f"{self.path} holds no video stream")
        self.stream = self.container.streams.video[0]
        if self.stream.codec_context is None:
            self.container.close()
            raise ValueError(f"{self.path} is in a video codec that FFmpeg cannot decode here")
        # Parallel work is spread over files; threads inside each would only wait for one another.
        self.stream.codec_context.thread_count = 1

    def _rewind(self) -> None:
        """To the very beginning: seeking there lands behind it in some containers."""
        self.container.close()
        self._open()

    def _sought(self, start: float) -> TimedFrames | None:
        """(time, frame) from the key frame before `start` on; None where seeking does not lead to one.

        Where there is no usable index it leads to some packet, from which on the decoder finds the next key frame, or
        makes pictures without those that they are made from.
        """
        if start <= 0 or self._numbered:
            return None
        origin = self.first_frame().pts
        for target in (start, start - _STEP_BACK_SECONDS):
            if target <= 0:
                return None
            try:
                self.container.seek(origin + int(target / self.stream.time_base), stream=self.stream, backward=True)
                frames = self._timed(origin)
                time, frame = next(frames, (math.inf, None))
            except (av.error.FFmpegError, ValueError):
                continue
            if time <= start and frame.key_frame and not frame.is_corrupt:
                return chain([(time, frame)], frames)
        return None

    def _from_the_beginning(self) -> TimedFrames:
        self._rewind()
        yield from self._timed(None)

    def _timed(self, origin: int | None) -> TimedFrames:
        """(time, frame); a frame without a time (raw streams have none) follows the one before it."""
        expected, is_numbered = 0.0, self._numbered
        for frame in self.decoded():
            if is_numbered or frame.pts is None:
                time = expected
            else:
                origin = frame.pts if origin is None else origin
                time = float((frame.pts - origin) * self.stream.time_base)
            expected = self.shown_until(time, frame)
            yield time, frame

    def _timed_packets(self) -> list[tuple[int, int]] | None:
        """(time of display, duration) of all packets, sorted, in time units; None where some have no time."""
        self._rewind()
        packets = _guarded(self.container.demux(self.stream), self.path)
        packets = [packet for packet in packets if packet.size and not packet.is_discard]
        if any(packet.pts is None for packet in packets):
            return None
        return sorted({packet.pts: packet.duration or 0 for packet in packets}.items())

    def _times_of_all_frames(self) -> tuple[list[float], float]:
        times, end = [], 0.0
        for time, frame in self.frames():
            times.append(time)
            end = self.shown_until(time, frame)
        return times, end


def _guarded(items: Iterable[Item], path: str | os.PathLike) -> Iterator[Item]:
    """What PyAV gives; it stumbles over streams that begin in the middle of a file."""
    try:
        yield from items
    except IndexError as error:
        raise ValueError(f"{path} cannot be decoded: a stream begins in its middle") from error
