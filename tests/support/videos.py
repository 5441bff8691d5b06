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


def write_with(path, frames, fps=8, pts=None, rotation=0, pixel_aspect=None, matrix=None, codec="libx264",
               file_format=None, options=None, gop=12, curve=None, sound_seconds=None):
    """Writes frames with what write_mp4 knows nothing of.

    Times `pts` in 1/fps, a rotation or a display matrix (a, b, c, d), pixels that are not square, another codec or
    container, a key frame every `gop`, a transfer curve, and a sound of its own length.
    """
    with av.open(str(path), "w", format=file_format) as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "5"} if options is None else options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        stream.codec_context.gop_size = gop
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if curve:
            stream.codec_context.color_trc = curve
        if rotation:
            stream.set_display_rotation(rotation)
        if matrix:
            a, b, c, d = (65536 * value for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        sound = container.add_stream("aac", rate=8000) if sound_seconds else None
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = i if pts is None else pts[i]
            picture.time_base = Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, int(8000 * sound_seconds)), np.int16), layout="mono")
            silence.sample_rate = 8000
            container.mux(sound.encode(silence))
            container.mux(sound.encode(None))


def write_cut(path, source, skip):
    """Copies an mp4 without its first `skip` frames and without encoding it anew: an edit list hides what is before."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as part:
        stream = whole.streams.video[0]
        copied = part.add_stream_from_template(stream)
        offset = round(skip / stream.average_rate / stream.time_base)
        packets = [packet for packet in whole.demux(stream) if packet.pts is not None]
        first = max(i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= offset)
        for packet in packets[first:]:
            packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, copied
            part.mux(packet)


def decode_all(path):
    """([time], [frame uint8 RGB as stored]) of all frames of a file, as PyAV decodes it from its beginning."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        origin = frames[0].pts
        times = [float((frame.pts - origin) * stream.time_base) for frame in frames]
        return times, [frame.to_ndarray(format="rgb24") for frame in frames]


def write_counting(path, count=32, fps=8, height=64, width=96):
    """mp4 of `counting_frames`."""
    write_mp4(path, counting_frames(count, height, width), fps=fps, crf=5)
