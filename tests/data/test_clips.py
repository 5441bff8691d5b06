"""Clips: the right frames at the right size, also of files that seek badly, lie on their side or are broken."""

from fractions import Fraction

import cv2
import numpy as np
import pytest

from ospnext_ms.data.clips import check_decodes, fit, measure_motion, probe, read_clip
from ospnext_ms.data.video import write_mp4
from tests.support.videos import counting_frames, numbers, panning, write_counting, write_with


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    """32 frames at 8 per second, key frames every 12 or so at most."""
    path = tmp_path_factory.mktemp("videos") / "counting.mp4"
    write_counting(path)
    return path


def test_what_a_file_is(counting):
    info = probe(counting)
    assert (info.width, info.height, info.fps) == (96, 64, 8)
    assert info.seconds == pytest.approx(4.0)


@pytest.mark.parametrize(("start", "fps", "frames", "expected"), [
    (0.0, 8, 5, [0, 1, 2, 3, 4]), (0.0, 4, 5, [0, 2, 4, 6, 8]), (1.5, 8, 5, [12, 13, 14, 15, 16]),
    (3.375, 8, 5, [27, 28, 29, 30, 31]), (0.0, 16, 5, [0, 0, 1, 2, 2]), (0.95, 8, 3, [8, 9, 10]),
    (0.55, 3, 9, [4, 7, 10, 12, 15, 18, 20, 23, 26]),
])
def test_the_nearest_frames_are_taken(counting, start, fps, frames, expected):
    clip = read_clip(counting, start, fps, frames, 64, 96)
    assert clip.shape == (frames, 64, 96, 3)
    got = numbers(clip)
    # Halfway between two frames either is the nearest.
    exact = np.array([(start + k / fps) * 8 for k in range(frames)])
    assert (np.abs(np.array(got) - exact) <= 0.5 + 1e-9).all()
    if fps != 16:
        assert got == expected


def test_uneven_frame_times(tmp_path):
    pts = [0, 1, 2, 10, 11, 20, 21, 22, 30]
    write_with(tmp_path / "a.mp4", counting_frames(9), pts=pts)
    assert numbers(read_clip(tmp_path / "a.mp4", 0.0, 0.8, 4, 64, 96)) == [0, 3, 5, 8]
    assert numbers(read_clip(tmp_path / "a.mp4", 20 / 8, 8, 3, 64, 96)) == [5, 6, 7]


def test_a_clip_that_the_file_does_not_hold(counting):
    with pytest.raises(ValueError, match=r"ends at 4\.000 s; the clip needs frames up to 4\.125 s"):
        read_clip(counting, 3.625, 8, 5, 64, 96)
    with pytest.raises(ValueError, match=r"ends at 4\.000 s, before 5\.000 s"):
        check_decodes(counting, 1.0, 5.0)
    assert check_decodes(counting, 0.0, 4.0) is None


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_rotated_videos_stand_upright(tmp_path, rotation):
    upright = np.zeros((5, 96, 64, 3), np.uint8)
    upright[:, :32, :32] = 220
    # The file holds the picture turned; its header says by how much to turn it back, counter-clockwise.
    write_with(tmp_path / "a.mp4", np.rot90(upright, -rotation // 90, axes=(1, 2)), rotation=rotation)
    info = probe(tmp_path / "a.mp4")
    assert (info.height, info.width) == (96, 64)
    clip = read_clip(tmp_path / "a.mp4", 0.0, 8, 5, 96, 64)
    assert clip[:, :30, :30].min() > 190
    assert clip[:, 36:].max() < 40
    assert clip[:, :, 36:].max() < 40


@pytest.mark.parametrize("rotation", [0, 90])
def test_pixels_that_are_not_square(tmp_path, rotation):
    write_with(tmp_path / "a.mp4", counting_frames(5, 64, 96), pixel_aspect=Fraction(4, 3), rotation=rotation)
    info = probe(tmp_path / "a.mp4")
    assert (info.height, info.width) == ((128, 64) if rotation else (64, 128))
    assert numbers(read_clip(tmp_path / "a.mp4", 0.0, 8, 5, info.height, info.width)) == [0, 1, 2, 3, 4]


def test_files_that_are_no_videos(tmp_path):
    with pytest.raises(FileNotFoundError, match="no video file"):
        probe(tmp_path / "a.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4 cannot be opened"):
        probe(tmp_path / "text.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.mp4 cannot be opened"):
        probe(tmp_path / "empty.mp4")


def test_damaged_files(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 96, 3), dtype=np.uint8)
    write_mp4(tmp_path / "a.mp4", noise, fps=8, crf=20)
    whole = (tmp_path / "a.mp4").read_bytes()
    # The index stands in front, so a file cut short opens and then ends early.
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.mp4"):
        read_clip(tmp_path / "cut.mp4", 0.0, 8, 40, 64, 96)
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 2000] = bytes(2000)
    (tmp_path / "damaged.mp4").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged\.mp4"):
        read_clip(tmp_path / "damaged.mp4", 0.0, 8, 40, 64, 96)


def test_fit_keeps_the_middle_and_the_shape():
    frame = np.zeros((100, 300, 3), np.uint8)
    frame[:, 100:200] = 200
    assert (fit(frame, 100, 100) == 200).all()
    assert (fit(frame, 50, 50) == 200).all()
    circle = cv2.circle(np.zeros((180, 320, 3), np.uint8), (160, 90), 40, (255, 255, 255), -1)
    small = fit(circle, 64, 64) > 127
    rows, columns = small[..., 0].any(1).sum(), small[..., 0].any(0).sum()
    assert abs(int(rows) - int(columns)) <= 1
    assert rows == pytest.approx(80 * 64 / 180, abs=1.5)


@pytest.mark.parametrize("speed", [0, 1, 3])
def test_motion_is_measured_in_widths_per_second(speed):
    clip = panning(9, speed)
    # The edge, where something new comes in, has no flow to be found.
    assert measure_motion(clip, fps=8) == pytest.approx(100 * 8 * speed / 96, rel=0.15, abs=0.05)
    assert measure_motion(clip[:1], fps=8) == 0
