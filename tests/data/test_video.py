"""Videos to files and back."""

import subprocess
import sys

import av
import cv2
import numpy as np
import pytest

from ospnext_ms.data.pictures import contact_sheet, evenly_spaced, thumbnail, write_png
from ospnext_ms.data.video import iterate_video, read_video, write_grid, write_mp4
from tests.support.dirty_memory import TIMES
from tests.support.paths import ROOT

COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 150, 40), (128, 128, 128)], np.uint8)


def flat_frames(height, width, colours=COLOURS):
    return np.stack([np.broadcast_to(colour, (height, width, 3)) for colour in colours])


def test_what_was_written_is_read_back(tmp_path):
    path = tmp_path / "new" / "a.mp4"
    frames = flat_frames(48, 80)
    assert write_mp4(path, iter(frames), fps=8, crf=10) == 5
    back = read_video(path)
    assert back.shape == frames.shape
    assert back.dtype == np.uint8
    assert np.abs(back.astype(int) - frames).max() <= 4
    assert [entry.name for entry in path.parent.iterdir()] == ["a.mp4"]


def test_the_stream_says_what_it_is(tmp_path):
    write_mp4(tmp_path / "a.mp4", flat_frames(48, 80), fps=16, crf=18)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames) == (16, 5)
        # BT.709 and limited range, without which players guess the colours.
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)


def test_a_lower_crf_keeps_more(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    sizes = []
    for crf in (10, 40):
        write_mp4(tmp_path / f"{crf}.mp4", noise, fps=8, crf=crf)
        sizes.append((tmp_path / f"{crf}.mp4").stat().st_size)
    assert sizes[0] > 2 * sizes[1]


def failing_frames():
    yield from flat_frames(48, 80)[:2]
    raise RuntimeError("the decoder broke")


def test_the_machine_does_not_decide_the_bytes(tmp_path):
    """x264 would take a thread a core, and a slice of the picture each; it notes how many in the file."""
    write_mp4(tmp_path / "a.mp4", flat_frames(256, 256), fps=8, crf=18)
    note = (tmp_path / "a.mp4").read_bytes()
    assert b" threads=1 " in note
    assert b"slices=" not in note


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt keeps freed memory for what is encoded next")
def test_what_was_in_memory_before_does_not_decide_the_bytes(tmp_path):
    """x264's AVX-512 reads memory that nobody wrote (on other processors this would pass without care)."""
    done = subprocess.run([sys.executable, "-m", "tests.support.dirty_memory", str(tmp_path)], cwd=ROOT, text=True,
                          capture_output=True, check=True)
    hashes = done.stdout.split()
    assert len(hashes) == TIMES
    assert len(set(hashes)) == 1, hashes


def test_nothing_stands_under_the_name_when_writing_fails(tmp_path):
    with pytest.raises(RuntimeError, match="decoder broke"):
        write_mp4(tmp_path / "a.mp4", failing_frames(), fps=8, crf=18)
    assert list(tmp_path.iterdir()) == []


def test_an_older_video_survives_a_failure(tmp_path):
    write_mp4(tmp_path / "a.mp4", flat_frames(48, 80), fps=8, crf=18)
    with pytest.raises(RuntimeError, match="decoder broke"):
        write_mp4(tmp_path / "a.mp4", failing_frames(), fps=8, crf=18)
    assert len(read_video(tmp_path / "a.mp4")) == 5
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("frames", "expected"), [
    ([], "no frames"),
    (flat_frames(47, 80), "even height and width"),
    (flat_frames(48, 80)[..., 0], "even height and width"),
    (flat_frames(48, 80).astype(np.float32), "expected uint8"),
    ([np.zeros((48, 80, 3), np.uint8), np.zeros((48, 82, 3), np.uint8)], r"frame 1 is uint8 \(48, 82, 3\)"),
])
def test_frames_that_cannot_be_written(tmp_path, frames, expected):
    with pytest.raises(ValueError, match=expected):
        write_mp4(tmp_path / "a.mp4", frames, fps=8, crf=18)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("crf", [0, 52])
def test_what_players_cannot_show_is_not_written(tmp_path, crf):
    """Lossless H.264 is of a profile that browsers and devices do not have."""
    with pytest.raises(ValueError, match=f"crf is {crf}; it must be from 1"):
        write_mp4(tmp_path / "a.mp4", flat_frames(48, 80), fps=8, crf=crf)
    write_mp4(tmp_path / "a.mp4", flat_frames(48, 80), fps=8, crf=1)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.profile in ("High", "Main", "Constrained Baseline")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no video file .*a\.mp4"):
        read_video(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be opened"):
        read_video(tmp_path / "a.mp4")


def test_a_video_is_read_frame_by_frame(tmp_path):
    write_mp4(tmp_path / "a.mp4", flat_frames(48, 80), fps=8, crf=10)
    first = next(iterate_video(tmp_path / "a.mp4"))
    assert np.abs(first.astype(int) - COLOURS[0]).max() <= 4


def test_a_png_is_exact(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", image)
    assert (cv2.imread(str(tmp_path / "a.png"))[..., ::-1] == image).all()


@pytest.mark.parametrize(("count", "columns", "expected"), [
    (17, 5, [0, 4, 8, 12, 16]), (81, 3, [0, 40, 80]), (3, 8, [0, 1, 2]), (1, 4, [0]), (9, 1, [0]),
])
def test_evenly_spaced(count, columns, expected):
    assert evenly_spaced(count, columns) == expected


def test_thumbnails_keep_their_shape():
    assert thumbnail(np.zeros((720, 1280, 3), np.uint8), 240).shape == (135, 240, 3)
    small = np.zeros((64, 128, 3), np.uint8)
    assert thumbnail(small, 240) is small


def test_contact_sheet_has_a_row_a_video_and_a_column_a_frame():
    videos = [flat_frames(64, 128, COLOURS), flat_frames(64, 128, COLOURS[::-1])]
    sheet = contact_sheet(videos, ["first", "second"], columns=3)
    assert sheet.shape == (2 * (22 + 64 + 4), 3 * (128 + 4) + 4, 3)
    centres = [sheet[22 + 32 + row * 90, 4 + 64 + column * 132] for row in range(2) for column in range(3)]
    assert (np.array(centres) == COLOURS[[0, 2, 4, 4, 2, 0]]).all()


def test_captions_are_drawn_and_cut_to_the_sheet():
    video = flat_frames(64, 128, COLOURS)
    sheet = contact_sheet([video] * 3, ["", "a cat", "ein Kätzchen 猫 " * 50], columns=2)
    ink = [(sheet[row * 90 : row * 90 + 22] < 128).any(axis=(0, 2)) for row in range(3)]
    assert not ink[0].any()
    assert 0 < np.flatnonzero(ink[1]).max() < 80
    assert np.flatnonzero(ink[2]).max() <= sheet.shape[1] - 4


def test_contact_sheet_of_large_and_of_unlike_videos():
    sheet = contact_sheet([flat_frames(90, 480), flat_frames(33, 51)[:2]], ["a", "b"], columns=4)
    assert sheet.shape == (2 * (22 + 4) + 45 + 33, 4 * (240 + 4) + 4, 3)
    with pytest.raises(ValueError, match="1 videos and 2 captions"):
        contact_sheet([flat_frames(64, 64)], ["a", "b"], columns=2)


def test_grid_plays_all_videos_side_by_side(tmp_path):
    paths = [tmp_path / f"{i}.mp4" for i in range(3)]
    for i, path in enumerate(paths):
        write_mp4(path, flat_frames(32, 48, COLOURS[i : i + 1].repeat(4 - i, axis=0)), fps=8, crf=5)
    assert write_grid(tmp_path / "grid.mp4", paths, fps=8, crf=5) == 4
    grid = read_video(tmp_path / "grid.mp4")
    assert grid.shape == (4, 64, 96, 3)
    last = grid[-1].astype(int)
    # The third video has two frames only: its last one stays.
    for (y, x), colour in zip(((16, 24), (16, 72), (48, 24), (48, 72)), [*COLOURS[:3], (0, 0, 0)], strict=True):
        assert np.abs(last[y, x] - np.array(colour, int)).max() <= 6


def test_grid_of_odd_cells_and_unlike_sizes(tmp_path):
    for name, size in (("a", (180, 642)), ("b", (34, 50))):
        write_mp4(tmp_path / f"{name}.mp4", flat_frames(*size)[:2], fps=8, crf=18)
    # 642 x 180 becomes 320 x 90 and 34 x 50 stays in the middle of its cell; a row of 45 pixels needs one more.
    write_grid(tmp_path / "grid.mp4", [tmp_path / "a.mp4", tmp_path / "b.mp4"], fps=8, crf=18)
    assert read_video(tmp_path / "grid.mp4").shape == (2, 90, 640, 3)
    write_mp4(tmp_path / "c.mp4", flat_frames(90, 640)[:2], fps=8, crf=18)
    write_grid(tmp_path / "odd.mp4", [tmp_path / "c.mp4"], fps=8, crf=18)
    assert read_video(tmp_path / "odd.mp4").shape == (2, 46, 320, 3)
    # A PNG is a video of one frame, and its width may be odd.
    write_png(tmp_path / "d.png", flat_frames(34, 51)[0])
    write_grid(tmp_path / "one.mp4", [tmp_path / "d.png"], fps=8, crf=18)
    assert read_video(tmp_path / "one.mp4").shape == (1, 34, 52, 3)
    with pytest.raises(ValueError, match="no videos"):
        write_grid(tmp_path / "none.mp4", [], fps=8, crf=18)
