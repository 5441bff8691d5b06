"""Videos whose frames can be told apart, for the tests of what reads them."""

from fractions import Fraction

import av
import cv2
import numpy as np

from ospnext_ms.data.video import write_mp4

STEP = 5


def counting_frames(count, height=64, width=96):
    """Frame i is grey of level 20 + 5 i: what was read says which frame it was."""
    levels = 20 + STEP * np.arange(count, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3))


def numbers(clip):
    """Frame numbers of a clip cut from `counting_frames`."""
    return np.rint((clip.astype(float).mean((1, 2, 3)) - 20) / STEP).astype(int).tolist()


def panning(count, speed, height=64, width=96):
    """A smooth random picture that moves left by `speed` pixels a frame."""
    noise = np.random.default_rng(0).random((height, width + count * speed)).astype(np.float32)
    smooth = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return np.stack([np.repeat(smooth[:, i * speed : i * speed + width, None], 3, 2) for i in range(count)])


def write_with(path, frames, fps=8, pts=None, rotation=0, pixel_aspect=None):
    """Writes frames with what write_mp4 knows nothing of: times `pts` in 1/fps, a rotation, pixels not square."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation:
            stream.set_display_rotation(rotation)
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = i if pts is None else pts[i]
            picture.time_base = Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def write_counting(path, count=32, fps=8, height=64, width=96):
    """mp4 of `counting_frames`."""
    write_mp4(path, counting_frames(count, height, width), fps=fps, crf=5)
