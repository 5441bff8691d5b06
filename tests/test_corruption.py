"""Hundreds of files damaged at random, always the same: named in one line, or read as they were; never a traceback.

Bytes are changed, cut off, put in and swapped, and values of what is still JSON. Where a hash is promised nothing that
was changed is accepted. Readers are tried alone, and whole commands on what is damaged.
"""

import json
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ospnext_ms.__main__ import USER_ERRORS, main
from ospnext_ms.config.prepare_data import PrepareDataConfig
from ospnext_ms.config.reader import load_config, read_section
from ospnext_ms.config.train import TrainConfig
from ospnext_ms.data.cache import INDEX, clips_shard
from ospnext_ms.data.latents import LatentDataset
from ospnext_ms.data.manifest import Entry, read_manifest
from ospnext_ms.data.text import Tokenizer
from ospnext_ms.models.lora_config import LoRAConfig
from ospnext_ms.preparation.selection import CRASHED, LeftOut, load_entry
from ospnext_ms.preparation.workers import map_in_order
from ospnext_ms.reporting.curves import draw_loss
from ospnext_ms.reporting.metrics import METRICS, MetricsFile, read_metrics
from ospnext_ms.storage.checkpoint_store import CheckpointStore
from ospnext_ms.storage.open_weights import open_weights
from ospnext_ms.storage.peft_format import read_adapter, write_adapter
from ospnext_ms.storage.safetensors_io import ArrayTensor, write_checkpoint
from tests.support import generate_runs, train_runs
from tests.support.caches import make_cache
from tests.support.configs import write_config
from tests.support.damage import damage, damage_values, rounds, swap
from tests.support.paths import CASES, CONFIGS, TOKENIZER
from tests.support.text_to_video import write_weights
from tests.support.videos import panning, write_with

pytestmark = [pytest.mark.slow, pytest.mark.framework]

LIMIT_SECONDS = 60
VIDEOS = {"a.mp4": {}, "a.ts": {"file_format": "mpegts"}, "a.mkv": {}, "a.avi": {"codec": "mpeg4", "options": {}}}


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


def test_videos(tmp_path):
    encoder = {"vocab_size": 8, "dim": 4, "ffn_dim": 4, "num_heads": 1, "num_layers": 1, "checkpoint": "c",
               "tokenizer": "t"}
    config = read_section(PrepareDataConfig, {
        "run_mode": "prepare_data", "model": {"text_encoder": encoder, "text_len": 8}, "workers": 1,
        "manifest": str(tmp_path / "m"), "output_dir": "x", "clips": {"fps": 5, "buckets": [[64, 96, 9]]},
        "cache": {"contents": "videos"}})
    for name, how in VIDEOS.items():
        write_with(tmp_path / name, panning(32, 2), **how)
    files = [tmp_path / name for name in VIDEOS] + sorted(CASES.iterdir())
    entries = []
    for i, rng in enumerate(rounds("video", 80)):
        source = files[i % len(files)]
        name = f"{i}_{source.name}"
        shutil.copyfile(source, tmp_path / name)
        damage(tmp_path / name, rng)
        entries.append(Entry(i + 1, name, ("x",)))
    crashed = lambda entry: ([], [LeftOut(entry.line, entry.path, CRASHED, "")])  # noqa: E731
    results = map_in_order(partial(load_entry, config=config), entries, 1, crashed)
    kept, left_out = [], []
    for entry in entries:
        (clips, rejected), _ = attempt(lambda: next(results))
        assert clips or rejected, entry
        kept += clips
        left_out += rejected
    # Some damage decoders do not notice; most of it they do.
    assert len(left_out) > 20
    assert len(kept) > 10
    assert all(item.detail for item in left_out if item.reason != CRASHED)


def test_manifests(tmp_path):
    lines = [json.dumps({"path": f"{i}.mp4", "caption": f"clip {i} é", "start_frame": i, "end_frame": i + 9},
                        ensure_ascii=False) for i in range(50)]
    refused = 0
    for i, rng in enumerate(rounds("manifest", 60)):
        (tmp_path / "m.jsonl").write_text("\n".join(lines), encoding="utf-8")
        (damage, damage_values)[i % 2](tmp_path / "m.jsonl", rng)
        entries, message = attempt(lambda: read_manifest(tmp_path / "m.jsonl"))
        refused += message is not None
        assert message is None or "m.jsonl" in message
        assert entries is None or all(entry.path and entry.captions for entry in entries)
    assert 20 < refused < 60


def read_whole_cache(folder):
    dataset = LatentDataset(folder, batch_size=1, seed=0, text_len=6)
    return [(batch.names, batch.latents.tobytes(), batch.text.tobytes()) for batch in map(dataset.batch, range(22))]


def test_caches(tmp_path):
    make_cache(tmp_path / "good")
    expected = read_whole_cache(tmp_path / "good")
    files = sorted(path.name for path in (tmp_path / "good").iterdir())
    accepted = 0
    for i, rng in enumerate(rounds("cache", 120)):
        folder = tmp_path / str(i)
        shutil.copytree(tmp_path / "good", folder)
        if i % 8 == 7:
            swap(*(folder / clips_shard(number) for number in rng.sample(range(3), 2)))
            is_changed, name = True, "shards"
        else:
            name = INDEX if i % 3 == 0 else files[i % len(files)]
            is_changed = (damage, damage_values)[i % 2](folder / name, rng)
        found, message = attempt(lambda folder=folder: read_whole_cache(folder))
        assert message is None or str(folder) in message
        if name == INDEX:
            # The index is the one file that has no hash; it is text that is read whole.
            accepted += message is None
        else:
            assert message is not None or not is_changed, name
            assert found is None or found == expected
    assert accepted < 30


def test_checkpoints(tmp_path):
    arrays = {f"layer{i}": np.random.default_rng(i).standard_normal((6, 5), np.float32) for i in range(4)}
    store = CheckpointStore(tmp_path / "good")
    for step in (1, 2):
        groups = {group: {name: array + step + shift for name, array in arrays.items()}
                  for group, shift in (("parameters", 0), ("ema", 9))}
        store.save(step, groups, {"step": step})
    store.wait()
    newest = tmp_path / "good" / "step_00000002"
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    for i, rng in enumerate(rounds("checkpoint", 60)):
        folder = tmp_path / str(i)
        shutil.copytree(tmp_path / "good", folder)
        if i % 10 == 9:
            swap(folder / newest.name / "ema" / "model.safetensors",
                 folder / newest.name / "parameters" / "model.safetensors")
            is_changed = True
        else:
            is_changed = (damage, damage_values)[i % 2](folder / newest.name / files[i % len(files)], rng)
        told = []
        found, message = attempt(lambda folder=folder, told=told: CheckpointStore(folder).newest(told.append))
        assert message is None
        assert found.step == (1 if is_changed else 2)
        assert bool(told) == is_changed
        for name, array in arrays.items():
            np.testing.assert_array_equal(found.groups["ema"][name].numpy(), array + found.step + 9)


def test_weights(tmp_path):
    tensors = {f"w{i}": ArrayTensor(np.full((3, 4), i, np.float32)) for i in range(4)}
    write_checkpoint(tmp_path / "good", tensors, max_shard_bytes=100)
    files = sorted(path.name for path in (tmp_path / "good").iterdir())
    refused = 0
    for i, rng in enumerate(rounds("weights", 60)):
        folder = tmp_path / str(i)
        shutil.copytree(tmp_path / "good", folder)
        if i % 10 == 9:
            swap(*(folder / name for name in files[:2]))
        else:
            (damage, damage_values)[i % 2](folder / files[i % len(files)], rng)
        found, message = attempt(lambda folder=folder: {
            name: tensor.numpy() for name, tensor in open_weights(folder).items()})
        refused += message is not None
        assert message is None or str(folder) in message
        # There is no hash: values may be others, but are of the tensors that the index names.
        assert found is None or all(array.size <= 12 for array in found.values())
    assert refused > 30


def test_adapters(tmp_path):
    arrays = {f"blocks.{i}.q": (np.ones((2, 6), np.float32), np.ones((5, 2), np.float32)) for i in range(3)}
    refused = 0
    for i, rng in enumerate(rounds("adapter", 60)):
        paths = write_adapter(tmp_path / str(i), LoRAConfig(rank=2, alpha=4.0, targets=("q",)), arrays)
        (damage, damage_values)[i // 2 % 2](Path(paths[i % 2]), rng)
        found, message = attempt(lambda i=i: read_adapter(tmp_path / str(i)))
        refused += message is not None
        assert message is None or str(tmp_path / str(i)) in message
        assert found is None or found[1].keys()
    assert refused > 20


def test_configurations(tmp_path):
    text = (CONFIGS / "train" / "tiny.yaml").read_text(encoding="utf-8")
    refused = 0
    for rng in rounds("yaml", 40):
        (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
        damage(tmp_path / "c.yaml", rng)
        config, message = attempt(lambda: load_config(TrainConfig, tmp_path / "c.yaml"))
        refused += message is not None
        assert config is None or isinstance(config, TrainConfig)
    assert refused > 16


def test_metrics(tmp_path):
    records = [{"step": step, "loss": 1 / step} for step in range(1, 60)]
    lines = {json.dumps(record).encode() for record in records}
    for i, rng in enumerate(rounds("metrics", 40)):
        path = tmp_path / str(i) / METRICS
        path.parent.mkdir()
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        (damage, damage_values)[i % 2](path, rng)
        found, message = attempt(lambda folder=path.parent: read_metrics(folder))
        assert message is None
        # A line that was not touched is kept.
        untouched = lines & set(path.read_bytes().split(b"\n"))
        assert {json.dumps(record).encode() for record in found} >= untouched
        _, message = attempt(lambda folder=path.parent: MetricsFile(folder, 30).close())
        assert message is None
        assert all(record["step"] <= 30 for record in read_metrics(path.parent))
        if i % 4 == 1:
            _, message = attempt(lambda folder=path.parent: draw_loss(read_metrics(folder), folder))
            assert message is None


def test_tokenizers(tmp_path):
    refused = 0
    for i, rng in enumerate(rounds("tokenizer", 40)):
        folder = tmp_path / str(i)
        folder.mkdir()
        for file in TOKENIZER.iterdir():
            shutil.copyfile(file, folder / file.name)
        (damage, damage_values)[i % 2](folder / ("tokenizer.json", "tokenizer_config.json")[i // 2 % 2], rng)
        found, message = attempt(lambda folder=folder: Tokenizer(folder, 6)(["a 3 moving left"]))
        refused += message is not None
        assert message is None or str(folder) in message
        assert found is None or found[0].shape == (1, 6)
    assert refused > 15


def command(capfd, *arguments):
    """(exit code, the line after "error: " or None) of a command in this process."""
    capfd.readouterr()
    code, message = attempt(lambda: main(list(arguments)))
    assert message is None, "a command tells and returns 2"
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(told) == (code == 2)
    return code, told[0] if told else None


def train_figures(folder):
    return [record["loss"] for record in read_metrics(folder) if "loss" in record]


def test_train_on_damaged_files(tmp_path, capfd):
    good = tmp_path / "good"
    train_runs.write_cache(good / "data")

    def configuration(folder, steps):
        values = train_runs.settings(folder / "out", folder / "data", steps=steps, every=1)
        values["context"]["mode"] = "pynative"
        values["model"]["dit"]["num_layers"] = 1
        # The rate of a step does not depend on how many there are.
        values["lr_schedule"] = {"type": "ConstantWarmUpLR", "learning_rate": 1e-3, "warmup_steps": 0}
        return write_config(folder / "run.yaml", values)

    assert command(capfd, "train", "--config", str(configuration(good, 2))) == (0, None)
    expected = tmp_path / "expected"
    shutil.copytree(good, expected)
    assert command(capfd, "train", "--config", str(configuration(expected, 3))) == (0, None)
    names = [path.relative_to(good) for path in sorted(good.rglob("*")) if path.is_file() and path.parent != good]
    codes = []
    for i, rng in enumerate(rounds("train", 40)):
        folder = tmp_path / str(i)
        shutil.copytree(good, folder)
        file = folder / names[i % len(names)]
        changes = damage_values if i % 2 and file.suffix in (".json", ".jsonl", ".safetensors") else damage
        changes(file, rng)
        code, _ = command(capfd, "train", "--config", str(configuration(folder, 3)))
        codes.append(code)
        assert code in (0, 2)
        if code == 0 and file.name != METRICS and file != folder / "data" / INDEX:
            # Whatever checkpoint it went on from, and whatever it was told of: the same numbers.
            assert train_figures(folder / "out") == train_figures(expected / "out"), file
    assert codes.count(0) > 5
    assert codes.count(2) > 5


def test_generate_from_damaged_files(tmp_path, capfd):
    good = tmp_path / "good"
    good.mkdir()
    write_weights(good, generate_runs.DIT, generate_runs.TEXT_ENCODER)
    (good / "prompts.txt").write_text("a 3 moving left\n")
    width = generate_runs.DIT["dim"]
    arrays = {f"blocks.{i}.self_attn.q": (np.ones((2, width), np.float32), np.ones((width, 2), np.float32))
              for i in range(generate_runs.DIT["num_layers"])}
    write_adapter(good / "adapter", LoRAConfig(rank=2, alpha=4.0, targets=("self_attn.q",)), arrays)
    np.save(good / "noise.npy", np.ones((16, 2, 4, 6), np.float32))
    names = [path.relative_to(good) for path in sorted(good.rglob("*")) if path.is_file()]
    codes = []
    for i, rng in enumerate(rounds("generate", 40)):
        folder = tmp_path / str(i)
        shutil.copytree(good, folder)
        values = generate_runs.settings(folder, folder / "out")
        values["prompts"] = {"prompt_file": str(folder / "prompts.txt")}
        values["adapter"] = str(folder / "adapter")
        values["sampling"]["starting_noise"] = str(folder / "noise.npy")
        file = folder / names[i % len(names)]
        if i:
            changes = damage_values if i % 2 and file.suffix in (".json", ".safetensors") else damage
            changes(file, rng)
        code, told = command(capfd, "generate", "--config", str(write_config(folder / "run.yaml", values)))
        codes.append(code)
        assert code in ((0, 2) if i else (0,)), told
        assert code == 0 or not list(folder.glob("out/*.mp4"))
    assert codes.count(2) > 10
