"""Frames of all kinds of containers at the right times: compared with PyAV's own decoding from the beginning."""

import cv2
import numpy as np
import pytest

from ospnext_ms.data.clips import check_decodes, probe, read_clip
from ospnext_ms.data.decoding import opened
from ospnext_ms.data.video import read_video
from tests.support.videos import counting_frames, decode_all, numbers, panning, write_counting, write_cut, write_with

FRAMES = 48
# Longer between key frames than a container's index, where it has one, reaches back.
SPARSE_KEYS = {"crf": "5", "keyint_min": "40"}


def uneven(path):
    """Frames 0-23 at 24 a second, then every fourth time."""
    write_with(path, counting_frames(FRAMES), fps=24, pts=[*range(24), *range(24, 24 + 4 * 24, 4)])


def cut(path):
    write_counting(path.with_name("whole.mp4"), FRAMES)
    write_cut(path, path.with_name("whole.mp4"), 14)


def written(**how):
    return lambda path: write_with(path, counting_frames(FRAMES), **({"fps": 12, "gop": 40} | how))


FILES = {
    "mpegts.ts": written(file_format="mpegts", options=SPARSE_KEYS),
    "mpeg2.ts": written(fps=25, file_format="mpegts", codec="mpeg2video", options={"qmin": "1", "qmax": "3"}),
    "sound.mkv": written(file_format="matroska", sound_seconds=6.5),
    "sound.flv": written(file_format="flv"),
    "uneven.mp4": uneven,
    "cut.mp4": cut,
    "xvid.avi": written(codec="mpeg4", options={"qmin": "1", "qmax": "3"}),
    "live.webm": written(file_format="webm", codec="libvpx", options={"live": "1", "crf": "5", "b": "2M"}),
}


@pytest.fixture(scope="module", params=FILES)
def file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / request.param
    FILES[request.param](path)
    return path


def test_clips_from_any_time_hold_the_nearest_frames(file):
    info = probe(file)
    times, frames = decode_all(file)
    np.testing.assert_allclose(info.times, times, atol=1e-9)
    rng = np.random.default_rng(0)
    for start in [0.0, *rng.uniform(0, info.seconds - 5 / 8, 39)]:
        clip = read_clip(file, start, 8, 5, 64, 96)
        for time, frame in zip(start + np.arange(5) / 8, clip, strict=True):
            away = np.abs(np.array(times) - time)
            # Halfway between two frames either is the nearest.
            nearest = np.flatnonzero(away <= away.min() + 1e-9)
            assert any((frame == frames[i]).all() for i in nearest), (start, time)


def test_the_picture_is_as_long_as_its_frames(file):
    seconds = {"uneven.mp4": 5.0, "cut.mp4": (FRAMES - 14) / 8, "mpeg2.ts": FRAMES / 25}
    info = probe(file)
    # Matroska and FLV round to milliseconds.
    assert info.seconds == pytest.approx(seconds.get(file.name, FRAMES / 12), abs=1.5e-3)
    check_decodes(file, 0.0, info.seconds)
    with pytest.raises(ValueError, match="ends at"):
        check_decodes(file, 0.0, info.seconds + 0.3)


@pytest.mark.parametrize(("name", "how"), [
    ("raw.h264", {"file_format": "h264"}), ("h264.avi", {}),
    ("xvid.avi", {"codec": "mpeg4", "options": {"qmin": "1", "qmax": "3"}}),
])
def test_frames_without_times_of_their_own_are_numbered(tmp_path, name, how):
    written(**{"fps": 8, "gop": 12} | how)(tmp_path / name)
    info = probe(tmp_path / name)
    assert (info.fps, info.seconds) == (8, FRAMES / 8)
    assert list(info.times) == [i / 8 for i in range(FRAMES)]
    for start in range(0, FRAMES - 4, 5):
        assert numbers(read_clip(tmp_path / name, start / 8, 8, 5, 64, 96)) == list(range(start, start + 5))
    check_decodes(tmp_path / name, 1.0, info.seconds)


def test_long_streams_without_an_index_are_not_read_from_their_beginning(tmp_path):
    frames = np.concatenate([counting_frames(40)] * 10)
    write_with(tmp_path / "a.ts", frames, file_format="mpegts", options={"crf": "25", "keyint_min": "40"}, gop=40)
    with opened(tmp_path / "a.ts") as video:
        time, _ = next(video.frames(40.3))
    assert 20 < time <= 40.3
    assert numbers(read_clip(tmp_path / "a.ts", 40.5, 8, 5, 64, 96)) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("codec", ["jpg", "png", "webp"])
def test_pictures_are_videos_of_one_frame(tmp_path, codec):
    picture = np.ascontiguousarray(panning(1, 1)[0])
    cv2.imwrite(str(tmp_path / f"a.{codec}"), picture)
    info = probe(tmp_path / f"a.{codec}")
    assert (info.height, info.width, len(info.times)) == (64, 96, 1)
    check_decodes(tmp_path / f"a.{codec}", 0.0, info.seconds)
    assert np.abs(read_clip(tmp_path / f"a.{codec}", 0.0, 8, 1, 64, 96)[0].astype(int) - picture).mean() < 3


# What ffmpeg shows: x' = a x + c y, y' = b x + d y.
@pytest.mark.parametrize(("matrix", "shown"), [
    ((1, 0, 0, 1), lambda f: f), ((-1, 0, 0, 1), lambda f: f[:, ::-1]), ((1, 0, 0, -1), lambda f: f[::-1]),
    ((-1, 0, 0, -1), lambda f: f[::-1, ::-1]), ((0, 1, 1, 0), lambda f: f.swapaxes(0, 1)),
    ((0, 1, -1, 0), lambda f: np.rot90(f, -1)), ((0, -1, 1, 0), lambda f: np.rot90(f)),
    ((0, -1, -1, 0), lambda f: f.swapaxes(0, 1)[::-1, ::-1]),
])
def test_videos_are_shown_as_their_matrix_says(tmp_path, matrix, shown):
    picture = np.zeros((5, 64, 96, 3), np.uint8)
    picture[:, :32, :32] = 220
    picture[:, :32, 64:] = 120
    write_with(tmp_path / "a.mp4", picture, matrix=matrix)
    expected = [shown(frame) for frame in decode_all(tmp_path / "a.mp4")[1]]
    height, width = expected[0].shape[:2]
    info = probe(tmp_path / "a.mp4")
    assert (info.height, info.width) == (height, width)
    np.testing.assert_array_equal(read_clip(tmp_path / "a.mp4", 0.0, 8, 5, height, width), expected)
    np.testing.assert_array_equal(read_video(tmp_path / "a.mp4"), expected)


def test_a_matrix_that_turns_by_less_than_a_quarter_is_refused(tmp_path):
    write_with(tmp_path / "a.mp4", counting_frames(5), matrix=(0.8, 0.6, -0.6, 0.8))
    with pytest.raises(ValueError, match=r"turned by 36\.9 degrees"):
        probe(tmp_path / "a.mp4")


def test_a_codec_that_is_not_known_is_named(tmp_path):
    write_with(tmp_path / "a.mkv", counting_frames(5))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data.replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))
    with pytest.raises(ValueError, match=r"a\.mkv is in a video codec that FFmpeg cannot decode here"):
        probe(tmp_path / "a.mkv")


def test_interlaced_and_hdr_videos_are_known(tmp_path):
    write_with(tmp_path / "i.ts", panning(9, 3), file_format="mpegts", options={"x264-params": "tff=1"})
    write_with(tmp_path / "pq.mp4", panning(9, 3), curve=16)
    write_with(tmp_path / "hlg.mp4", panning(9, 3), curve=18)
    write_with(tmp_path / "sdr.mp4", panning(9, 3), curve=1)
    kinds = {name: (probe(tmp_path / name).interlaced, probe(tmp_path / name).hdr)
             for name in ("i.ts", "pq.mp4", "hlg.mp4", "sdr.mp4")}
    assert kinds == {"i.ts": (True, False), "pq.mp4": (False, True), "hlg.mp4": (False, True),
                     "sdr.mp4": (False, False)}
