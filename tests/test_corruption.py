"""Two hundred files damaged at random, always the same: named in one line, or read as they were; never a traceback.

Bytes are changed, cut off, put in and swapped. Where a hash is promised nothing that was changed is accepted.
"""

import json
import random
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ospnext_ms.__main__ import USER_ERRORS
from ospnext_ms.config.prepare_data import PrepareDataConfig
from ospnext_ms.config.reader import load_config, read_section
from ospnext_ms.config.train import TrainConfig
from ospnext_ms.data.cache import INDEX, clips_shard
from ospnext_ms.data.latents import LatentDataset
from ospnext_ms.data.manifest import Entry, read_manifest
from ospnext_ms.models.lora_config import LoRAConfig
from ospnext_ms.preparation.selection import CRASHED, LeftOut, load_entry
from ospnext_ms.preparation.workers import map_in_order
from ospnext_ms.reporting.metrics import METRICS, MetricsFile, read_metrics
from ospnext_ms.storage.checkpoint_store import CheckpointStore
from ospnext_ms.storage.peft_format import read_adapter, write_adapter
from tests.support.caches import make_cache
from tests.support.paths import CONFIGS
from tests.support.videos import panning, write_with

pytestmark = pytest.mark.slow

LIMIT_SECONDS = 60
VIDEOS = {"a.mp4": {}, "a.ts": {"file_format": "mpegts"}, "a.mkv": {}, "a.avi": {"codec": "mpeg4", "options": {}}}


def damage(path, rng):
    """Changes a file in one of the ways in which disks, copies and people do."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(["bytes", "cut", "empty", "insert", "zeros", "repeat", "head"])
    place = rng.randrange(max(len(data), 1))
    if kind == "bytes":
        for _ in range(rng.choice([1, 1, 10, 100])):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == "head":
        for _ in range(rng.choice([1, 5])):
            data[rng.randrange(min(len(data), 64))] = rng.randrange(256)
    elif kind == "cut":
        del data[place:]
    elif kind == "empty":
        data.clear()
    elif kind == "insert":
        data[place:place] = rng.randbytes(rng.choice([1, 7, 4096]))
    elif kind == "zeros":
        data[place : place + 512] = bytes(len(data[place : place + 512]))
    else:
        data[place:place] = data[: rng.randrange(1, 2048)]
    path.write_bytes(data)


@pytest.fixture(autouse=True)
def never_hangs():
    def too_long(number, frame):
        raise AssertionError(f"not done after {LIMIT_SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def attempt(read):
    """(result, None), or (None, message) where it is refused as users are told."""
    signal.alarm(LIMIT_SECONDS)
    try:
        return read(), None
    except USER_ERRORS as error:
        return None, str(error) or pytest.fail(f"{error!r} says nothing")
    finally:
        signal.alarm(0)


def rounds(kind, count):
    """Generators of random numbers, one a damage."""
    return [random.Random(f"{kind} {i}") for i in range(count)]


def changed_by(path, rng):
    """Whether the damage changed the file."""
    before = path.read_bytes()
    damage(path, rng)
    return path.read_bytes() != before


def test_videos(tmp_path):
    encoder = {"vocab_size": 8, "dim": 4, "ffn_dim": 4, "num_heads": 1, "num_layers": 1, "checkpoint": "c",
               "tokenizer": "t"}
    config = read_section(PrepareDataConfig, {
        "run_mode": "prepare_data", "model": {"text_encoder": encoder, "text_len": 8}, "workers": 1,
        "manifest": str(tmp_path / "m"), "output_dir": "x", "clips": {"fps": 8, "buckets": [[64, 96, 9]]},
        "cache": {"contents": "videos"}})
    for name, how in VIDEOS.items():
        write_with(tmp_path / name, panning(32, 2), **how)
    entries = []
    for i, rng in enumerate(rounds("video", 40)):
        name = f"{i}_{list(VIDEOS)[i % len(VIDEOS)]}"
        shutil.copy(tmp_path / name.partition("_")[2], tmp_path / name)
        damage(tmp_path / name, rng)
        entries.append(Entry(i + 1, name, ("x",)))
    crashed = lambda entry: ([], [LeftOut(entry.line, entry.path, CRASHED, "")])  # noqa: E731
    signal.alarm(40 * LIMIT_SECONDS)
    results = list(map_in_order(partial(load_entry, config=config), entries, 1, crashed))
    # Some damage decoders do not notice; most of it they do.
    assert sum(bool(left_out) for _, left_out in results) > 10
    assert all(clips or left_out for clips, left_out in results)
    assert all(item.detail for _, left_out in results for item in left_out if item.reason != CRASHED)


def test_manifests(tmp_path):
    lines = [json.dumps({"path": f"{i}.mp4", "caption": f"clip {i} é", "start_frame": i, "end_frame": i + 9},
                        ensure_ascii=False) for i in range(50)]
    refused = 0
    for rng in rounds("manifest", 30):
        (tmp_path / "m.jsonl").write_text("\n".join(lines), encoding="utf-8")
        damage(tmp_path / "m.jsonl", rng)
        entries, message = attempt(lambda: read_manifest(tmp_path / "m.jsonl"))
        refused += message is not None
        assert message is None or "m.jsonl" in message
        assert entries is None or all(entry.path and entry.captions for entry in entries)
    assert refused > 10


def read_whole_cache(folder):
    dataset = LatentDataset(folder, batch_size=1, seed=0, text_len=6)
    return [(batch.names, batch.latents.tobytes(), batch.text.tobytes()) for batch in map(dataset.batch, range(22))]


def test_caches(tmp_path):
    make_cache(tmp_path / "good")
    expected = read_whole_cache(tmp_path / "good")
    files = sorted(path.name for path in (tmp_path / "good").iterdir())
    for i, rng in enumerate(rounds("cache", 40)):
        folder = tmp_path / str(i)
        shutil.copytree(tmp_path / "good", folder)
        if i % 8 == 7:
            first, second = (folder / clips_shard(number) for number in rng.sample(range(3), 2))
            shutil.copy(second, folder / "x")
            first.replace(second)
            (folder / "x").replace(first)
            is_changed, name = True, "shards"
        else:
            name = files[i % len(files)]
            is_changed = changed_by(folder / name, rng)
        found, message = attempt(lambda folder=folder: read_whole_cache(folder))
        if name == INDEX:
            # The index is the one file that has no hash; it is text that is read whole.
            assert message is None or str(folder) in message
        else:
            assert message is not None or not is_changed, name
            assert found is None or found == expected


def test_checkpoints(tmp_path):
    arrays = {f"layer{i}": np.random.default_rng(i).standard_normal((6, 5), np.float32) for i in range(4)}
    store = CheckpointStore(tmp_path / "good")
    for step in (1, 2):
        values = {name: array + step for name, array in arrays.items()}
        store.save(step, {"parameters": values, "ema": values}, {"step": step})
    store.wait()
    newest = tmp_path / "good" / "step_00000002"
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    for i, rng in enumerate(rounds("checkpoint", 30)):
        folder = tmp_path / str(i)
        shutil.copytree(tmp_path / "good", folder)
        is_changed = changed_by(folder / newest.name / files[i % len(files)], rng)
        told = []
        found, message = attempt(lambda folder=folder, told=told: CheckpointStore(folder).newest(told.append))
        assert message is None
        assert found.step == (1 if is_changed else 2)
        assert bool(told) == is_changed
        for name, array in arrays.items():
            np.testing.assert_array_equal(found.groups["ema"][name].numpy(), array + found.step)


def test_adapters(tmp_path):
    arrays = {f"blocks.{i}.q": (np.ones((2, 6), np.float32), np.ones((5, 2), np.float32)) for i in range(3)}
    refused = 0
    for i, rng in enumerate(rounds("adapter", 20)):
        paths = write_adapter(tmp_path / str(i), LoRAConfig(rank=2, alpha=4.0, targets=("q",)), arrays)
        damage(Path(paths[i % 2]), rng)
        found, message = attempt(lambda i=i: read_adapter(tmp_path / str(i)))
        refused += message is not None
        assert message is None or str(tmp_path / str(i)) in message or "rank" in message or "targets" in message
        assert found is None or set(found[1]) <= set(arrays) or all(name.startswith("b") for name in found[1])
    assert refused > 8


def test_configurations(tmp_path):
    text = (CONFIGS / "train" / "tiny.yaml").read_text(encoding="utf-8")
    refused = 0
    for rng in rounds("yaml", 20):
        (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
        damage(tmp_path / "c.yaml", rng)
        config, message = attempt(lambda: load_config(TrainConfig, tmp_path / "c.yaml"))
        refused += message is not None
        assert config is None or isinstance(config, TrainConfig)
    assert refused > 8


def test_metrics(tmp_path):
    records = [{"step": step, "loss": 1 / step} for step in range(1, 60)]
    lines = {json.dumps(record).encode() for record in records}
    for i, rng in enumerate(rounds("metrics", 20)):
        path = tmp_path / str(i) / METRICS
        path.parent.mkdir()
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        damage(path, rng)
        found, message = attempt(lambda folder=path.parent: read_metrics(folder))
        assert message is None
        # A line that was not touched is kept.
        untouched = lines & set(path.read_bytes().split(b"\n"))
        assert {json.dumps(record).encode() for record in found} >= untouched
        _, message = attempt(lambda folder=path.parent: MetricsFile(folder, 30).close())
        assert message is None
        assert all(record["step"] <= 30 for record in read_metrics(path.parent))
