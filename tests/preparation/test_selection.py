"""Which videos become which clips, and the reasons given for the others."""

import cv2
import pytest

from ospnext_ms.config.prepare_data import PrepareDataConfig
from ospnext_ms.config.reader import read_section
from ospnext_ms.data.manifest import Entry
from ospnext_ms.data.video import write_mp4
from ospnext_ms.preparation.selection import load_entry
from tests.support.videos import counting_frames, numbers, panning, write_counting, write_with

TEXT_ENCODER = {"vocab_size": 8, "dim": 4, "ffn_dim": 4, "num_heads": 1, "num_layers": 1, "checkpoint": "c",
                "tokenizer": "t"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_counting(folder / "a.mp4", count=32, fps=8, height=64, width=96)
    write_counting(folder / "wide.mp4", count=32, fps=8, height=32, width=96)
    write_mp4(folder / "pan.mp4", panning(17, 2), fps=8, crf=10)
    (folder / "broken.mp4").write_text("no video")
    write_with(folder / "interlaced.ts", panning(17, 2), file_format="mpegts", options={"x264-params": "tff=1"})
    write_with(folder / "pq.mp4", panning(17, 2), curve=16)
    # Frames 0-15 at 16 a second, then every fourth time: 4.5 a second on average.
    write_with(folder / "uneven.mp4", counting_frames(32), fps=16, pts=[*range(16), *range(16, 16 + 64, 4)])
    write_with(folder / "stream.ts", counting_frames(32), file_format="mpegts", gop=32)
    write_with(folder / "sound.mkv", counting_frames(32), sound_seconds=5.5)
    write_with(folder / "mirrored.mp4", counting_frames(32), matrix=(-1, 0, 0, 1))
    cv2.imwrite(str(folder / "picture.png"), panning(1, 1)[0])
    return folder


def configure(folder, **changes):
    mapping = {
        "run_mode": "prepare_data", "model": {"text_encoder": TEXT_ENCODER, "text_len": 8, "vae": {"dim": 4,
                                                                                                "checkpoint": "c"}},
        "manifest": str(folder / "manifest.jsonl"), "workers": 0, "output_dir": "nowhere",
        "clips": {"fps": 8, "buckets": [[64, 96, 9]]},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        mapping.setdefault(section, {})
        mapping[section] = mapping[section] | {name: value} if name else value
    return read_section(PrepareDataConfig, mapping)


def load(folder, name="a.mp4", entry=None, **changes):
    return load_entry(Entry(7, name, ("x",), **(entry or {})), configure(folder, **changes))


def test_a_clip_and_its_record(folder):
    (clip,), left_out = load(folder)
    assert left_out == []
    assert clip.frames.shape == (9, 64, 96, 3)
    first = numbers(clip.frames)[0]
    assert numbers(clip.frames) == list(range(first, first + 9))
    assert clip.record["start"] == pytest.approx(first / 8, abs=1 / 16)
    assert clip.name == clip.record["name"] == "00000007-0"
    assert (clip.record["path"], clip.record["bucket"], clip.record["fps"]) == ("a.mp4", 0, 8)
    assert clip.record["part"] == [0.0, 4.0]


def test_the_random_start_depends_on_seed_and_line_only(folder):
    starts = [load(folder, clips__seed=seed)[0][0].record["start"] for seed in (0, 0, 1, 2, 3)]
    assert starts[0] == starts[1]
    assert len(set(starts)) == 4
    assert all(0 <= start <= 4.0 - 9 / 8 for start in starts)


def test_clips_of_one_video_do_not_overlap(folder):
    clips, _ = load(folder, clips__clips_per_video=5)
    # Three clips of 9 frames fit into 32.
    assert [clip.name for clip in clips] == ["00000007-0", "00000007-1", "00000007-2"]
    frames = [number for clip in clips for number in numbers(clip.frames)]
    assert frames == sorted(set(frames))
    assert len(frames) == 27


def test_only_the_wanted_frames_are_used(folder):
    for seed in range(5):
        (clip,), _ = load(folder, entry={"start_frame": 10, "end_frame": 21}, clips__seed=seed)
        assert set(numbers(clip.frames)) <= set(range(10, 21))
    (clip,), _ = load(folder, entry={"start_frame": 23})
    assert numbers(clip.frames) == list(range(23, 32))


@pytest.mark.parametrize(("buckets", "expected"), [
    ([[32, 48, 9], [64, 96, 9]], 1), ([[64, 96, 5], [64, 96, 33], [64, 96, 13]], 2), ([[64, 80, 9], [32, 48, 5]], 1),
    ([[64, 80, 9], [128, 192, 9]], 0), ([[64, 64, 9], [64, 80, 5]], 1),
])
def test_the_bucket_that_costs_least(folder, buckets, expected):
    (clip,), _ = load(folder, clips__buckets=buckets, clips__max_cut=0.3)
    assert clip.record["bucket"] == expected
    assert clip.frames.shape == (buckets[expected][2], *buckets[expected][:2], 3)


def test_small_videos_are_enlarged_where_asked_for(folder):
    (clip,), _ = load(folder, clips__buckets=[[128, 192, 9]], clips__upscale=True)
    assert clip.frames.shape == (9, 128, 192, 3)


@pytest.mark.parametrize(("name", "entry", "changes", "reason", "detail"), [
    ("none.mp4", {}, {}, "no such file", "none.mp4"),
    ("x" * 256 + ".mp4", {}, {}, "unreadable", "File name too long"),
    ("a.mp4", {"start": 5.0}, {}, "too short", "before start 5.0 s"),
    ("interlaced.ts", {}, {"filters__allow_interlaced": False}, "interlaced", "made of two fields"),
    ("pq.mp4", {}, {"filters__allow_hdr": False}, "HDR", "allow_hdr is false"),
    ("broken.mp4", {}, {}, "unreadable", "broken.mp4 cannot be opened"),
    ("a.mp4", {}, {"clips__buckets": [[64, 96, 33]]}, "too short", "4.00 s at 8.000 frames per second"),
    ("a.mp4", {"start_frame": 24}, {}, "too short", "1.00 s"),
    ("a.mp4", {"start_frame": 40}, {}, "too short", "before start_frame 40"),
    ("a.mp4", {}, {"clips__buckets": [[96, 144, 9]]}, "too small", "96x64 fills no bucket"),
    ("wide.mp4", {}, {"clips__buckets": [[32, 32, 9]]}, "aspect ratio", "would lose 67% at least"),
    ("a.mp4", {}, {"clips__fps": 12}, "frame rate below the target", "8.000 frames per second; the target is 12"),
    ("a.mp4", {}, {"filters__min_height": 65}, "too small", "height 64 is below 65"),
    ("a.mp4", {}, {"filters__min_width": 97}, "too small", "width 96 is below 97"),
    ("a.mp4", {}, {"filters__min_seconds": 4.5}, "too short", "seconds 4 is below 4.5"),
    ("a.mp4", {}, {"filters__max_seconds": 3.5}, "too long", "seconds 4 is above 3.5"),
    ("a.mp4", {}, {"filters__min_aspect": 1.6}, "aspect ratio", "width/height 1.5 is below 1.6"),
    ("a.mp4", {}, {"filters__max_aspect": 1.4}, "aspect ratio", "width/height 1.5 is above 1.4"),
    ("a.mp4", {}, {"filters__min_motion": 2.0}, "motion", "is below 2.0"),
    ("pan.mp4", {}, {"filters__max_motion": 2.0}, "motion", "is above 2.0"),
])
def test_what_is_left_out_and_why(folder, name, entry, changes, reason, detail):
    clips, (left_out,) = load(folder, name, entry, **changes)
    assert clips == []
    assert (left_out.line, left_out.path, left_out.reason) == (7, name, reason)
    assert detail in left_out.detail


def test_frames_are_counted_as_they_are_shown(folder):
    entry = {"start_frame": 16, "end_frame": 24}
    for seed in range(5):
        (clip,), _ = load(folder, "uneven.mp4", entry, clips__fps=4, clips__buckets=[[64, 96, 5]], clips__seed=seed)
        assert clip.record["part"] == [1.0, 3.0]
        assert set(numbers(clip.frames)) <= set(range(16, 24))
    by_seconds = load(folder, "uneven.mp4", {"start": 1.0, "end": 3.0}, clips__fps=4, clips__buckets=[[64, 96, 5]])
    assert by_seconds[0][0].record["part"] == [1.0, 3.0]


@pytest.mark.parametrize("contents", ["latents", "videos"])
@pytest.mark.parametrize("name", ["stream.ts", "sound.mkv", "mirrored.mp4", "interlaced.ts", "pq.mp4"])
def test_containers_are_read_for_both_kinds_of_cache(folder, name, contents):
    vae = {"dim": 4, "checkpoint": "c"} if contents == "latents" else None
    (clip,), left_out = load(folder, name, cache__contents=contents, model__vae=vae)
    assert left_out == []
    assert clip.record["part"] == [0.0, pytest.approx(17 / 8 if name in ("interlaced.ts", "pq.mp4") else 4.0, abs=1e-3)]
    assert (clip.record.get("interlaced", False), clip.record.get("hdr", False)) == (
        name == "interlaced.ts", name == "pq.mp4")


def test_pictures_are_clips_of_one_frame_at_any_rate(folder):
    (clip,), _ = load(folder, "picture.png", clips__buckets=[[64, 96, 1], [64, 96, 9]], clips__fps=30)
    assert clip.frames.shape == (1, 64, 96, 3)


def test_moving_pictures_pass_the_motion_filter(folder):
    (clip,), left_out = load(folder, "pan.mp4", filters__min_motion=5.0, filters__max_motion=30.0)
    assert left_out == []
    assert clip.record["motion"] == pytest.approx(100 * 8 * 2 / 96, rel=0.2)


def test_a_cache_of_videos_keeps_no_frames(folder):
    (clip,), _ = load(folder, cache__contents="videos", model__vae=None)
    assert clip.frames is None
    assert clip.record["part"] == [0.0, 4.0]


@pytest.mark.parametrize(("changes", "expected"), [
    ({"clips__buckets": [[60, 96, 9]]}, "height is 60; it must be a multiple of 16 .*; nearest valid: 48 and 64"),
    ({"clips__buckets": [[64, 96, 8]]}, "number of frames is 8; it must be 4k.1 .*; nearest valid: 5 and 9"),
    ({"clips__buckets": [[64, 96]]}, r"clips.buckets\[0\]: the list \[64, 96\] has 2 entries; it must have 3"),
    ({"clips__buckets": []}, "buckets is empty"),
    ({"clips__buckets": [[64, 96, 9], [64, 96, 9]]}, "given twice"), ({"clips__max_cut": 1}, "max_cut is 1"),
    ({"filters__min_seconds": 3, "filters__max_seconds": 2}, "min_seconds 3.0 is above max_seconds 2.0"),
    ({"cache__contents": "videos"}, "model.vae is not used"), ({"model__vae": None}, "model.vae is missing"),
    ({"workers": -1}, "workers is -1"), ({"cache__entries_per_shard": 0}, "entries_per_shard is 0"),
])
def test_bad_configurations(folder, changes, expected):
    with pytest.raises(ValueError, match=expected):
        configure(folder, **changes)
