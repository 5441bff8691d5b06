"""prepare-data with random networks: what it writes, that it goes on after a stop, and what it reports."""

import json
import shutil

import numpy as np
import pytest

from ospnext_ms.__main__ import main
from ospnext_ms.config.prepare_data import PrepareDataConfig
from ospnext_ms.config.reader import read_section
from ospnext_ms.config.sections import ContextSection
from ospnext_ms.data import cache
from ospnext_ms.data.clips import read_clip
from ospnext_ms.data.latents import LatentDataset
from ospnext_ms.generation import coders
from ospnext_ms.preparation import prepare as prepare_data
from ospnext_ms.runtime import start
from tests.support.configs import changed
from tests.support.generate_runs import DIT, TEXT_ENCODER
from tests.support.paths import TOKENIZER
from tests.support.text_to_video import VAE, model_section
from tests.support.videos import write_counting

DATASET = dict(batch_size=1, seed=0, text_len=12)
CAPTIONS = {"a.mp4": "a 3 moving left", "b.mp4": ["a 5", "a bright 5 standing still"], "c.mp4": "a 3 moving left"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three good videos of two sizes, a broken one and one that is not there, with their manifest."""
    folder = tmp_path_factory.mktemp("videos")
    for name, height in (("a.mp4", 32), ("b.mp4", 48), ("c.mp4", 32)):
        write_counting(folder / name, count=9, fps=8, height=height, width=80 - height)
    (folder / "broken.mp4").write_text("no video")
    entries = [*CAPTIONS.items(), ("broken.mp4", "x"), ("none.mp4", "y")]
    lines = [json.dumps({"path": path, "caption": caption}) for path, caption in entries]
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def configure(videos, model_files, tmp_path):
    """Function that changes sections and returns the PrepareDataConfig; the cache is tmp_path/cache."""
    def change(**sections):
        model = model_section(model_files, DIT, TEXT_ENCODER)
        mapping = {
            "run_mode": "prepare_data", "context": {"mode": "pynative"},
            "model": {"vae": model["vae"], "text_len": 12, "text_encoder": model["text_encoder"]},
            "manifest": str(videos / "manifest.jsonl"), "workers": 0,
            "clips": {"fps": 8, "buckets": [[32, 48, 5], [48, 32, 5]]},
            "cache": {"dtype": "fp32", "entries_per_shard": 2}, "output_dir": str(tmp_path / "cache"),
        }
        return read_section(PrepareDataConfig, changed(mapping, **sections))

    return change


class QuickClipEncoder:
    """Stands in for the VAE: one number for every 4 frames of 8x8 pixels."""

    def __init__(self, section, runtime):
        self.checkpoint = section.checkpoint

    def __call__(self, frames):
        latent = frames[::4, ::8, ::8].mean(3, dtype=np.float32)
        return np.repeat(latent[None], 16, 0)


class QuickTextEncoder:
    """Stands in for UMT5: as many rows as letters."""

    def __init__(self, section, text_len, runtime):
        self.dim = section.dim

    def __call__(self, captions):
        return [np.full((min(len(caption), 11) + 1, self.dim), len(caption), np.float32) for caption in captions]


@pytest.fixture
def quick(monkeypatch):
    """Networks that cost nothing, for the tests of everything around them."""
    monkeypatch.setattr(coders, "ClipEncoder", QuickClipEncoder)
    monkeypatch.setattr(coders, "TextEncoder", QuickTextEncoder)


def contents(folder):
    """Every file of a cache but the report (it holds times)."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != cache.REPORT}


def test_the_cache_holds_what_the_networks_give(configure, videos, tmp_path):
    config = configure()
    report = prepare_data.prepare(config)
    assert (report["videos"], report["videos_used"], report["clips"]) == (5, 3, 3)
    assert [bucket["clips"] for bucket in report["buckets"]] == [2, 1]
    assert report["left_out_counts"] == {"unreadable": 1, "no such file": 1}
    assert [(item["line"], item["path"]) for item in report["left_out"]] == [(4, "broken.mp4"), (5, "none.mp4")]
    assert json.loads((tmp_path / "cache" / cache.REPORT).read_text()) == report

    stored = cache.Cache(tmp_path / "cache")
    assert [sample.bucket for sample in stored.samples] == [0, 1, 0]
    for sample, (name, captions) in zip(stored.samples, CAPTIONS.items(), strict=True):
        captions = [captions] if isinstance(captions, str) else captions
        assert stored.record(sample)["path"] == name
        assert [stored.text(sample, choice)[1] for choice in range(len(sample.texts))] == captions
        # One token a word, and the end of the text.
        assert [len(stored.text(sample, i)[0]) for i in range(len(captions))] == [len(c.split()) + 1 for c in captions]
    runtime = start(ContextSection(mode="pynative"))
    sample = stored.samples[1]
    height, width, frames = stored.buckets[sample.bucket]
    clip = read_clip(videos / "b.mp4", stored.record(sample)["start"], 8, frames, height, width)
    np.testing.assert_array_equal(stored.latent(sample), coders.ClipEncoder(config.model.vae, runtime)(clip))
    encode = coders.TextEncoder(config.model.text_encoder, 12, runtime)
    for choice, embedding in enumerate(encode(CAPTIONS["b.mp4"])):
        np.testing.assert_allclose(stored.text(sample, choice)[0], embedding, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stored.empty_text(), encode([""])[0], rtol=1e-5, atol=1e-6)
    dataset = LatentDataset(tmp_path / "cache", **DATASET)
    assert sorted(dataset.batch(step).names[0] for step in range(3)) == ["00000001-0", "00000002-0", "00000003-0"]


def test_a_stopped_run_goes_on(quick, configure, tmp_path, monkeypatch):
    whole = prepare_data.prepare(configure(output_dir=str(tmp_path / "whole")))
    write_clips, written = cache.write_clips, []

    def stop_after_one(path, *arguments):
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        write_clips(path, *arguments)

    monkeypatch.setattr(cache, "write_clips", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        prepare_data.prepare(configure())
    with pytest.raises(FileNotFoundError, match="is not finished"):
        cache.Cache(tmp_path / "cache")
    monkeypatch.setattr(cache, "write_clips", lambda path, *arguments: (written.append(path.name),
                                                                        write_clips(path, *arguments)))
    report = prepare_data.prepare(configure())
    assert written == [cache.clips_shard(i) for i in range(3)]
    assert {**report, "seconds_of_this_run": None} == {**whole, "seconds_of_this_run": None}
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


def test_processes_that_share_a_run(quick, configure, tmp_path):
    prepare_data.prepare(configure(output_dir=str(tmp_path / "whole")))
    assert prepare_data.prepare(configure(), part=(1, 2)) is None
    assert not (tmp_path / "cache" / cache.INDEX).exists()
    report = prepare_data.prepare(configure(), part=(0, 2))
    assert report["clips"] == 3
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


def test_a_damaged_shard_is_named_and_made_again(quick, configure, tmp_path, capsys):
    prepare_data.prepare(configure())
    before = contents(tmp_path / "cache")
    shard = tmp_path / "cache" / cache.clips_shard(1)
    shard.write_bytes(shard.read_bytes()[:-1])
    prepare_data.prepare(configure())
    assert "clips-00001.safetensors is truncated" in capsys.readouterr().out
    assert contents(tmp_path / "cache") == before
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    prepare_data.prepare(configure())
    assert "clips-00001.safetensors is not the file that index.json was written for" in capsys.readouterr().out
    assert contents(tmp_path / "cache") == before


@pytest.mark.parametrize(("changes", "expected"), [
    ({"clips": {"fps": 8, "buckets": [[32, 48, 5]]}}, r"clips.buckets: \[\[32, 48, 5\], \[48, 32, 5\]\] then"),
    ({"filters": {"min_seconds": 1.0}}, "filters.min_seconds: None then, 1.0 now"),
    ({"cache": {"dtype": "fp16", "entries_per_shard": 2}}, "cache.dtype: 'fp32' then, 'fp16' now"),
])
def test_a_cache_of_other_settings_is_not_continued(quick, configure, changes, expected):
    prepare_data.prepare(configure())
    with pytest.raises(ValueError, match=expected):
        prepare_data.prepare(configure(**changes))


def test_a_cache_begun_before_a_setting_was_there_goes_on_with_its_default(quick, configure, tmp_path):
    prepare_data.prepare(configure())
    path = tmp_path / "cache" / cache.SETTINGS
    settings = json.loads(path.read_text())
    assert settings.pop("filters.allow_hdr") is True
    path.write_text(json.dumps(settings))
    prepare_data.prepare(configure())
    with pytest.raises(ValueError, match="filters.allow_hdr: True then, False now"):
        prepare_data.prepare(configure(filters={"allow_hdr": False}))


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b"[" * 10**5])
def test_settings_that_cannot_be_read_are_named(quick, configure, tmp_path, text):
    prepare_data.prepare(configure())
    (tmp_path / "cache" / cache.SETTINGS).write_bytes(text)
    with pytest.raises(ValueError, match=r"settings\.json, which says how the cache there was begun, cannot be read"):
        prepare_data.prepare(configure())


def test_other_weights_are_other_settings(quick, configure, model_files, tmp_path):
    prepare_data.prepare(configure())
    other = tmp_path / "vae.safetensors"
    weights = bytearray((model_files / "vae.safetensors").read_bytes())
    weights[-1] ^= 1
    other.write_bytes(weights)
    model = configure().model
    text_encoder = {"checkpoint": model.text_encoder.checkpoint, "tokenizer": str(TOKENIZER)}
    sections = {"vae": VAE | {"checkpoint": str(other)}, "text_len": 12, "text_encoder": TEXT_ENCODER | text_encoder}
    with pytest.raises(ValueError, match="model.vae.checkpoint"):
        prepare_data.prepare(configure(model=sections))


def test_other_folders_are_left_alone(quick, configure, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other things \(thesis\.txt\)"):
        prepare_data.prepare(configure())


def test_training_straight_from_videos(quick, configure, model_files, videos, tmp_path):
    model = {"vae": None, "text_len": 12,
             "text_encoder": TEXT_ENCODER | {"checkpoint": str(model_files / "text_encoder.safetensors"),
                                             "tokenizer": str(TOKENIZER)}}
    prepare_data.prepare(configure(model=model, cache={"contents": "videos", "dtype": "fp32", "entries_per_shard": 2}))
    with pytest.raises(ValueError, match="holds videos, so training needs the VAE"):
        LatentDataset(tmp_path / "cache", **DATASET)
    seen = []

    def encode(frames):
        seen.append(frames)
        return np.full((16, 2, frames.shape[1] // 8, frames.shape[2] // 8), frames.mean(), np.float32)

    dataset = LatentDataset(tmp_path / "cache", **DATASET, encode=encode)
    starts = set()
    for step in range(30):
        batch = dataset.batch(step)
        np.testing.assert_array_equal(batch.latents, LatentDataset(tmp_path / "cache", **DATASET, encode=encode)
                                      .batch(step).latents)
        assert seen[-1].shape in ((5, 32, 48, 3), (5, 48, 32, 3))
        starts.add(round(float(batch.latents[0, 0, 0, 0, 0])))
    # 9 frames leave room for 5 starts, and every epoch draws anew.
    assert len(starts) >= 4
    gone = videos / "gone"
    shutil.copytree(videos, gone)
    # A video that vanishes is named; no other sample takes its place.
    broken = LatentDataset(tmp_path / "cache", **DATASET, encode=encode)
    broken.cache.video_root = str(gone)
    (gone / "b.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.mp4"):
        [broken.batch(step) for step in range(3)]
    shutil.rmtree(gone)


def test_a_cache_without_a_clip_is_an_error_after_its_report(quick, configure, tmp_path):
    with pytest.raises(ValueError, match=r"no clip of the 5 videos was kept \(3 x too short, 1 x unreadable") as caught:
        prepare_data.prepare(configure(filters={"min_seconds": 9.0}))
    assert str(tmp_path / "cache" / cache.REPORT) in str(caught.value)
    assert json.loads((tmp_path / "cache" / cache.REPORT).read_text())["clips"] == 0
    with pytest.raises(FileNotFoundError, match="is not finished"):
        cache.Cache(tmp_path / "cache")


def test_the_command(quick, configure, videos, model_files, tmp_path, capsys, monkeypatch):
    path = tmp_path / "run.yaml"
    path.write_text(f"""
run_mode: prepare_data
context: {{mode: pynative}}
model:
  vae: {{dim: 4, checkpoint: {model_files}/vae.safetensors}}
  text_encoder: {{vocab_size: 256, dim: 16, ffn_dim: 32, num_heads: 2, num_layers: 1,
                 checkpoint: {model_files}/text_encoder.safetensors, tokenizer: {TOKENIZER}}}
  text_len: 12
manifest: {videos}/manifest.jsonl
workers: 1
clips: {{fps: 8, buckets: [[32, 48, 5], [48, 32, 5]]}}
output_dir: {tmp_path}/cache
""")
    assert main(["prepare-data", "--config", str(path), "--part", "1/1"]) == 0
    out = capsys.readouterr().out
    assert "3 clips (0.00 h) of 3 of 5 videos" in out
    assert "left out: 1 x unreadable" in out
    assert "line 4: broken.mp4: unreadable:" in out
    assert out.strip().endswith("cache/index.json")
    with pytest.raises(SystemExit, match="2"):
        main(["prepare-data", "--config", str(path), "--part", "3/2"])
    assert "argument --part: '3/2' is not I/N" in capsys.readouterr().err
    monkeypatch.setenv("MS_WORKER_NUM", "2")
    assert main(["prepare-data", "--config", str(path)]) == 2
    assert "does not run under msrun" in capsys.readouterr().err
