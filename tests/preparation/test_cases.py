"""Files on which seeking, counting and turning once failed (tests/cases), through both kinds of cache, frame by frame.

The files are of ffmpeg's test source, 160x112: an MPEG-TS whose seeks land late, a Matroska whose sound is longer than
its picture, an mp4 of 25 and then 6.25 frames a second, and one to be shown mirrored. What is compared with is PyAV's
decoding of each file from its beginning.
"""

import json

import numpy as np
import pytest

from ospnext_ms.config.prepare_data import PrepareDataConfig
from ospnext_ms.config.reader import read_section
from ospnext_ms.data import clips
from ospnext_ms.data.cache import Cache
from ospnext_ms.data.latents import LatentDataset
from ospnext_ms.generation import coders
from ospnext_ms.preparation.prepare import prepare
from tests.support.generate_runs import TEXT_ENCODER
from tests.support.paths import CASES, TOKENIZER
from tests.support.text_to_video import VAE
from tests.support.videos import decode_all

pytestmark = pytest.mark.framework

SECONDS = {"mirrored.mp4": 2.0, "mkv_with_audio.mkv": 3.0, "ts_gop50.ts": 4.0, "uneven_rate.mp4": 10.0}
STARTS = 40
SIZE, FPS, FRAMES = (112, 160), 5, 5


@pytest.fixture(scope="module")
def decoded():
    """{file: (times, frames as they are shown)}."""
    videos = {name: decode_all(CASES / name) for name in SECONDS}
    times, frames = videos["mirrored.mp4"]
    videos["mirrored.mp4"] = times, [frame[:, ::-1] for frame in frames]
    return videos


@pytest.fixture
def configure(tmp_path, monkeypatch):
    """Function (contents, lines of the manifest) -> PrepareDataConfig; encoders keep frames as they are."""
    monkeypatch.setattr(coders, "ClipEncoder", lambda section, runtime: lambda frames: frames.astype(np.float32))
    monkeypatch.setattr(coders, "TextEncoder", lambda section, text_len, runtime: lambda captions: [
        np.ones((1, section.dim), np.float32) for _ in captions])
    monkeypatch.setattr("ospnext_ms.storage.fingerprint.of_checkpoint", lambda path: path)

    def configure(contents, lines):
        (tmp_path / "manifest.jsonl").write_text("\n".join(json.dumps(line | {"caption": "x"}) for line in lines))
        encoder = TEXT_ENCODER | {"checkpoint": "none", "tokenizer": str(TOKENIZER)}
        vae = VAE | {"checkpoint": "none"} if contents == "latents" else None
        return read_section(PrepareDataConfig, {
            "run_mode": "prepare_data", "context": {"mode": "pynative"}, "workers": 0,
            "model": {"vae": vae, "text_len": 8, "text_encoder": encoder},
            "manifest": str(tmp_path / "manifest.jsonl"), "video_root": str(CASES),
            "clips": {"fps": FPS, "buckets": [[*SIZE, FRAMES]]}, "cache": {"contents": contents, "dtype": "fp32"},
            "output_dir": str(tmp_path / "cache")})

    return configure


def assert_nearest(clip, start, times, frames):
    for time, frame in zip(start + np.arange(FRAMES) / FPS, clip, strict=True):
        away = np.abs(np.array(times) - time)
        # Halfway between two frames either is the nearest.
        nearest = np.flatnonzero(away <= away.min() + 1e-9)
        assert any((frame == frames[i]).all() for i in nearest), (start, time)


def test_a_cache_of_latents_holds_the_frames_of_its_times(configure, decoded, tmp_path):
    report = prepare(configure("latents", [{"path": name} for name in SECONDS for _ in range(STARTS)]))
    assert report["left_out"] == []
    cache = Cache(tmp_path / "cache")
    starts = {name: set() for name in SECONDS}
    for sample in cache.samples:
        record = cache.record(sample)
        assert record["part"] == [0.0, pytest.approx(SECONDS[record["path"]], abs=1.5e-3)]
        starts[record["path"]].add(record["start"])
        assert_nearest(cache.latent(sample), record["start"], *decoded[record["path"]])
    assert {name: len(found) for name, found in starts.items()} == dict.fromkeys(SECONDS, STARTS)


def test_training_from_videos_reads_the_frames_of_its_times(configure, decoded, tmp_path, monkeypatch):
    assert prepare(configure("videos", [{"path": name} for name in SECONDS]))["left_out"] == []
    read, plain = [], clips.read_clip

    def read_clip(path, start, *arguments):
        read.append((path.name, start, plain(path, start, *arguments)))
        return read[-1][-1]

    monkeypatch.setattr(clips, "read_clip", read_clip)
    dataset = LatentDataset(tmp_path / "cache", batch_size=1, seed=0, text_len=8, encode=lambda frames: frames)
    for step in range(STARTS * len(SECONDS)):
        dataset.batch(step)
    for name, start, clip in read:
        assert_nearest(clip, start, *decoded[name])
    assert {name: len({start for found, start, _ in read if found == name}) for name in SECONDS} == dict.fromkeys(
        SECONDS, STARTS)


@pytest.mark.parametrize("contents", ["latents", "videos"])
def test_numbers_of_frames_are_those_of_frames_as_they_are_shown(configure, tmp_path, contents):
    prepare(configure(contents, [{"path": "uneven_rate.mp4", "start_frame": 50, "end_frame": 60}]))
    cache = Cache(tmp_path / "cache")
    assert cache.record(cache.samples[0])["part"] == pytest.approx([2.0, 3.6])
