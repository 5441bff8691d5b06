"""Batches from a cache: right contents, one shape a step, the same after a restart and for any number of ranks."""

import json
from collections import Counter

import numpy as np
import pytest

from ospnext_ms.data.cache import EMPTY_TEXT, INDEX, Cache, clips_shard, text_shard, write_texts
from ospnext_ms.data.latents import LatentDataset
from tests.support.caches import make_cache

SETTINGS = dict(batch_size=2, seed=5, text_len=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    make_cache(folder)
    return folder


def number(name):
    return int(name.split("-")[0])


def test_a_batch_holds_its_samples(folder):
    dataset = LatentDataset(folder, **SETTINGS)
    assert len(dataset) == 11
    assert dataset.text_dim == 8
    wordings = Counter()
    for step in range(40):
        batch = dataset.batch(step)
        assert batch.latents.dtype == batch.text.dtype == np.float32
        assert batch.latents.shape[:2] == (2, 16)
        assert batch.text.shape == (2, 6, 8)
        for latent, text, name, caption in zip(batch.latents, batch.text, batch.names, batch.captions, strict=True):
            i = number(name)
            assert (latent == i).all()
            word, clip = caption.split()
            assert int(clip) == i
            length, value = (i % 3 + 1, i) if word == "clip" else (2, -i - 0.5)
            assert (text[:length] == value).all()
            assert (text[length:] == 0).all()
            wordings[word] += 1
    assert min(wordings.values()) > 20


def test_an_epoch_visits_every_sample_once(folder):
    dataset = LatentDataset(folder, **SETTINGS | {"batch_size": 1})
    for epoch in range(3):
        steps = range(11 * epoch, 11 * (epoch + 1))
        assert sorted(number(dataset.batch(step).names[0]) for step in steps) == list(range(11))
        assert {dataset.epoch(step) for step in steps} == {epoch}


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_a_step(folder, ranks):
    whole = LatentDataset(folder, **SETTINGS | {"batch_size": 4})
    parts = [LatentDataset(folder, **SETTINGS | {"batch_size": 4 // ranks}, data_rank=rank, data_size=ranks)
             for rank in range(ranks)]
    for step in range(12):
        batches = [part.batch(step) for part in parts]
        expected = whole.batch(step)
        assert len({batch.latents.shape for batch in batches}) == 1
        np.testing.assert_array_equal(np.concatenate([batch.latents for batch in batches]), expected.latents)
        np.testing.assert_array_equal(np.concatenate([batch.text for batch in batches]), expected.text)


def test_a_restart_goes_on_where_it_stopped(folder):
    settings = SETTINGS | {"text_drop": 0.3}
    first, second = LatentDataset(folder, **settings), LatentDataset(folder, **settings)
    whole = [first.batch(step) for step in range(30)]
    resumed = [second.batch(step) for step in range(17, 30)]
    for batch, again in zip(whole[17:], resumed, strict=True):
        assert (batch.names, batch.captions) == (again.names, again.captions)
        np.testing.assert_array_equal(batch.latents, again.latents)
        np.testing.assert_array_equal(batch.text, again.text)


def test_dropped_prompts_have_the_empty_text(folder):
    dataset = LatentDataset(folder, **SETTINGS, text_drop=0.25)
    assert (dataset.empty_text[0] == 99).all()
    assert (dataset.empty_text[1:] == 0).all()
    batches = [dataset.batch(step) for step in range(200)]
    dropped = [(text, caption) for batch in batches for text, caption in zip(batch.text, batch.captions, strict=True)
               if (text[0] == 99).all()]
    # 400 draws of 25 %: five standard deviations are 43.
    assert 57 < len(dropped) < 143
    assert {caption for _, caption in dropped} == {""}
    assert sum(caption == "" for batch in batches for caption in batch.captions) == len(dropped)


def test_samples_are_left_out_by_name(folder):
    names = {f"{i:08d}-0" for i in range(11)}
    dataset = LatentDataset(folder, **SETTINGS | {"batch_size": 1}, exclude=["00000003-0", "00000009-0"])
    assert len(dataset) == 9
    assert {dataset.batch(step).names[0] for step in range(9)} == names - {"00000003-0", "00000009-0"}
    with pytest.raises(ValueError, match="exclude names samples that .* does not hold: clip 3; names are such as 0000"):
        LatentDataset(folder, **SETTINGS, exclude=["clip 3"])
    with pytest.raises(ValueError, match="leaves no sample"):
        LatentDataset(folder, **SETTINGS, exclude=names)


def test_one_sample(folder):
    latent, text, caption = LatentDataset(folder, **SETTINGS).sample(7)
    assert (latent == 7).all()
    assert latent.shape == (16, 3, 6, 4)
    assert caption == "clip 7"
    assert (text[:2] == 7).all()


def test_half_precision_is_widened(tmp_path):
    make_cache(tmp_path, dtype=np.float16)
    batch = LatentDataset(tmp_path, **SETTINGS).batch(0)
    assert batch.latents.dtype == batch.text.dtype == np.float32


@pytest.mark.parametrize(("change", "expected"), [
    ({"text_len": 3}, "text_len is 3, but .* up to 4 tokens"), ({"text_drop": 1.5}, "text_drop is 1.5"),
    ({"batch_size": 0}, "batch_size is 0"), ({"data_rank": 2, "data_size": 2}, "data_rank 2 of data_size 2"),
    ({"encode": lambda frames: frames}, "nothing to encode"),
])
def test_bad_arguments(folder, change, expected):
    with pytest.raises(ValueError, match=expected):
        LatentDataset(folder, **SETTINGS | change)


def without_hashes(folder):
    """Makes an index one of a version that had none."""
    index = json.loads((folder / INDEX).read_text())
    del index["sha256"]
    (folder / INDEX).write_text(json.dumps(index))


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [clips_shard(1), text_shard(1), EMPTY_TEXT])
def test_a_shard_that_was_changed_is_refused_when_it_is_used(tmp_path, name):
    make_cache(tmp_path)
    flip_a_bit(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is not the file that index.json was written for"):
        [LatentDataset(tmp_path, **SETTINGS).batch(step) for step in range(6)]
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing, which index.json promises"):
        [LatentDataset(tmp_path, **SETTINGS).batch(step) for step in range(6)]


def test_shards_that_were_swapped_are_refused(tmp_path):
    make_cache(tmp_path)
    first, second = (tmp_path / clips_shard(i) for i in range(2))
    (tmp_path / "x").write_bytes(first.read_bytes())
    second.rename(first)
    (tmp_path / "x").rename(second)
    with pytest.raises(ValueError, match="is not the file that index.json was written for"):
        [LatentDataset(tmp_path, **SETTINGS).batch(step) for step in range(6)]


def test_a_cache_without_hashes_is_read_and_known_as_before(tmp_path):
    make_cache(tmp_path)
    with_hashes = Cache(tmp_path).fingerprint()
    without_hashes(tmp_path)
    assert Cache(tmp_path).fingerprint() != with_hashes
    assert LatentDataset(tmp_path, **SETTINGS).batch(0).latents.shape[0] == 2


def test_caches_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist \(current folder .*\); make it with: .* --config"):
        LatentDataset(tmp_path / "none", **SETTINGS)
    with pytest.raises(FileNotFoundError, match="is not finished"):
        LatentDataset(tmp_path, **SETTINGS)
    make_cache(tmp_path, counts=(0, 0, 0))
    with pytest.raises(ValueError, match="holds no samples"):
        LatentDataset(tmp_path, **SETTINGS)
    make_cache(tmp_path)
    shard = tmp_path / clips_shard(0)
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"clips-00000\.safetensors is not the file that index\.json was written for"):
        [LatentDataset(tmp_path, **SETTINGS).batch(step) for step in range(6)]
    without_hashes(tmp_path)
    with pytest.raises(ValueError, match=r"clips-00000\.safetensors is truncated"):
        [LatentDataset(tmp_path, **SETTINGS).batch(step) for step in range(6)]
    (tmp_path / INDEX).write_text('{"format": "another"}')
    with pytest.raises(ValueError, match="its format is 'another'"):
        LatentDataset(tmp_path, **SETTINGS)


@pytest.mark.parametrize(("change", "expected"), [
    ({"contents": "sound"}, "contents is 'sound'"), ({"contents": "videos"}, "video_root None"),
    ({"fps": "8"}, "fps is '8'"), ({"fps": -1}, "fps is -1"), ({"buckets": [[32, 48]]}, "a bucket is not"),
    ({"buckets": [[32, 48, 0]]}, "whole numbers above 0"), ({"text_len": 1.5}, "whole numbers above 0"),
    ({"samples": [["a", 0, 3, [0]]]}, "no sample is .*bucket=3"), ({"samples": [["a", "0", 0, [0]]]}, "shard='0'"),
    ({"samples": [["a", 0, 0, []]]}, r"texts=\(\)"), ({"samples": [["a", 0, 0, [None]]]}, "None"),
    ({"samples": [[1, 0, 0, [0]]]}, "name=1"), ({"samples": [7]}, "unpack"), ({"sha256": [1]}, "sequence"),
])
def test_an_index_with_what_no_cache_has_is_named(tmp_path, change, expected):
    make_cache(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text()) | change
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"index\.json is not an index of a cache: .*{expected}"):
        Cache(tmp_path)


def test_texts_that_are_not_those_of_the_index_are_named(tmp_path):
    make_cache(tmp_path)
    without_hashes(tmp_path)
    cache = Cache(tmp_path)
    shard, sample = tmp_path / text_shard(0), cache.samples[0]
    write_texts(shard, ["clip 0"], [np.zeros((1, 8), np.float32)])
    with pytest.raises(ValueError, match=r"text-00000\.safetensors does not hold text 1 of 00000000-0"):
        cache.text(sample, 1)
    for shape in ((8,), (5, 8), (1, 7), (0, 8)):
        write_texts(shard, ["clip 0"], [np.zeros(shape, np.float32)])
        with pytest.raises(ValueError, match=r"text-00000\.safetensors holds an embedding .* promises \[1 to 4, 8\]"):
            Cache(tmp_path).text(sample, 0)
    write_texts(tmp_path / EMPTY_TEXT, [], [])
    with pytest.raises(ValueError, match="holds 0 texts instead of the empty one"):
        cache.empty_text()
