"""Videos to and from files. A frame is uint8 RGB [height, width, 3]; no file appears half-written under its name."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from av import VideoStream
from av.video.reformatter import ColorRange, Colorspace

from ospnext_ms.data.decoding import opened, upright
from ospnext_ms.data.pictures import thumbnail
from ospnext_ms.storage.files import atomic_path

GRID_CELL_WIDTH = 320
# H.264 numbers BT.709 as 1, in primaries and transfer curve alike (ITU-T H.264, tables E-3 and E-4).
_BT709 = 1
# What every processor with AVX-512 has, in x264's names.
_UP_TO_AVX2 = "SSE2Fast,LZCNT,SSE3,SSSE3,SSE4.1,SSE4.2,AVX,FMA3,BMI1,BMI2,AVX2"


def write_mp4(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float, crf: int) -> int:
    """Writes frames as H.264 (yuv420p, BT.709) while they come, and returns how many there were.

    Args:
        frames: uint8 RGB frames of one even height and width, or an array [F, H, W, 3] of them.
        fps: frames per second.
        crf: H.264's constant rate factor, 1 (nearly lossless) to 51 (worst). 0 is another profile, which players
            cannot show.

    Raises:
        ValueError: another crf, no frames, frames of another dtype or shape, or an odd size, which yuv420p has not.
    """
    if not 1 <= crf <= 51:
        raise ValueError(f"crf is {crf}; it must be from 1 (nearly lossless) to 51 (worst)")
    with atomic_path(path) as temporary, av.open(str(temporary), "w", options={"movflags": "+faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf)} | _instructions())
        # Each thread would encode a slice of its own: another number of cores, other bytes and other pictures.
        stream.codec_context.thread_count = 1
        count = 0
        for frame in frames:
            frame = np.ascontiguousarray(frame)
            if count == 0:
                _open_stream(stream, frame.shape)
            expected = (stream.height, stream.width, 3)
            if frame.dtype != np.uint8 or frame.shape != expected:
                raise ValueError(f"frame {count} is {frame.dtype} {frame.shape}; expected uint8 {expected}")
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            picture.pts = count
            picture.time_base = 1 / rate
            container.mux(stream.encode(picture))
            count += 1
        if count == 0:
            raise ValueError(f"no frames to write to {path}")
        container.mux(stream.encode(None))
    return count


@cache
def _instructions() -> dict[str, str]:
    """Options that keep x264 from AVX-512, where the processor has it: there its choice of quantisers reads memory that
    nobody wrote (core 165), so the same frames became different bytes from time to time. What is left is as fast.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return {"x264-params": f"asm={_UP_TO_AVX2}"} if "avx512" in flags else {}


def _open_stream(stream: VideoStream, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or shape[0] % 2 or shape[1] % 2 or not all(shape):
        raise ValueError(f"a frame has shape {shape}; expected [height, width, 3] with even height and width")
    stream.height, stream.width = shape[:2]
    stream.pix_fmt = "yuv420p"
    # Untagged videos are shown as BT.601 by some players and BT.709 by others, with visibly different colours.
    context = stream.codec_context
    context.color_primaries = context.color_trc = _BT709
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG


def iterate_video(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """Yields a video file's frames as they are shown, uint8 RGB [height, width, 3].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no video that can be decoded.
    """
    with opened(path) as video:
        for frame in video.decoded():
            yield upright(frame)


def read_video(path: str | os.PathLike) -> np.ndarray:
    """All frames of a video file, uint8 [F, height, width, 3]; raises as `iterate_video`, also where there is none."""
    frames = list(iterate_video(path))
    if not frames:
        raise ValueError(f"{path} holds no frames")
    return np.stack(frames)


def write_grid(path: str | os.PathLike, videos: Sequence, fps: float, crf: int) -> int:
    """Writes one video that plays several side by side, and returns its number of frames.

    Args:
        videos: paths of video files; they are decoded together, one frame of each at a time. Cells are as large as
            the largest (scaled down to GRID_CELL_WIDTH), smaller videos stand in the middle of theirs, and a video
            that ends first keeps its last frame.

    Raises:
        ValueError: no videos; otherwise as iterate_video and write_mp4.
    """
    if not videos:
        raise ValueError("no videos to put in a grid")
    return write_mp4(path, _grid_frames([iterate_video(video) for video in videos]), fps, crf)


def _grid_frames(readers: Sequence[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    columns = math.ceil(math.sqrt(len(readers)))
    rows = math.ceil(len(readers) / columns)
    current = [thumbnail(next(reader), GRID_CELL_WIDTH) for reader in readers]
    height, width = (max(frame.shape[axis] for frame in current) for axis in (0, 1))
    ended = [False] * len(readers)
    while not all(ended):
        # yuv420p needs even sizes; the odd row or column stays black.
        canvas = np.zeros((rows * height + rows * height % 2, columns * width + columns * width % 2, 3), np.uint8)
        for i, frame in enumerate(current):
            top = i // columns * height + (height - frame.shape[0]) // 2
            left = i % columns * width + (width - frame.shape[1]) // 2
            canvas[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
        yield canvas
        for i, reader in enumerate(readers):
            frame = next(reader, None)
            ended[i] = frame is None
            current[i] = current[i] if frame is None else thumbnail(frame, GRID_CELL_WIDTH)
