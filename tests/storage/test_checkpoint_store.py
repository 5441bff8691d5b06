"""Checkpoints: what is written is read back, what is damaged is named, and a kill never costs a complete one."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from ospnext_ms.storage import checkpoint_store as checkpoint
from ospnext_ms.storage import training_checkpoint as checkpoint_files
from ospnext_ms.storage.checkpoint_store import CheckpointStore
from ospnext_ms.storage.open_weights import open_weights, read_headers
from ospnext_ms.storage.training_checkpoint import Piece, open_checkpoint, problems_of
from tools.conversion.source import open_source


def tensors(step, count=3):
    rng = np.random.default_rng(step)
    return {f"blocks.{i}.weight": rng.standard_normal((5, 4 + i), np.float32) for i in range(count)}


def saved(folder, *steps, **options):
    store = CheckpointStore(folder, **options)
    for step in steps:
        store.save(step, {"parameters": tensors(step), "ema": tensors(step + 1)}, {"step": step, "value": 0.1})
    store.wait()
    return store


def test_what_is_saved_is_read_back_bit_by_bit(tmp_path):
    saved(tmp_path, 7)
    checkpoint = CheckpointStore(tmp_path).newest()
    assert (checkpoint.step, checkpoint.state) == (7, {"step": 7, "value": 0.1})
    for group, step in (("parameters", 7), ("ema", 8)):
        for name, array in tensors(step).items():
            np.testing.assert_array_equal(checkpoint.groups[group][name].numpy(), array)


@pytest.mark.parametrize("limit", [10**9, 200])
def test_a_group_is_an_ordinary_checkpoint(tmp_path, limit):
    saved(tmp_path, 1, max_shard_bytes=limit)
    folder = tmp_path / "step_00000001" / "ema"
    headers = read_headers(folder)
    assert {name: tensor.shape for name, tensor in headers.items()} == {k: v.shape for k, v in tensors(2).items()}
    files = sorted(folder.glob("*.safetensors"))
    assert (len(files) > 1) == (limit == 200)


def test_weights_of_a_group_are_those_that_were_written(tmp_path):
    saved(tmp_path, 1)
    folder = tmp_path / "step_00000001" / "ema"
    for name, array in tensors(2).items():
        np.testing.assert_array_equal(open_weights(folder)[name].numpy(), array)
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="the weights .*ema are refused: .*model.safetensors is damaged: its SHA-256"):
        open_weights(folder)
    # Damage to one group is none of another's.
    assert open_weights(folder.with_name("parameters")).keys() == tensors(1).keys()


@pytest.mark.framework
@pytest.mark.parametrize("limit", [10**9, 200])
def test_mindspore_reads_a_group(tmp_path, limit):
    import mindspore as ms

    saved(tmp_path, 1, max_shard_bytes=limit)
    file = min((tmp_path / "step_00000001" / "ema").glob("*.safetensors"))
    assert ms.load_checkpoint(str(file), format="safetensors").keys() == load_file(file).keys()


def test_only_the_last_are_kept(tmp_path):
    store = saved(tmp_path, 1, 2, 3, 4, keep_last=2)
    assert [path.name for path in store.paths()] == ["step_00000003", "step_00000004"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "parameters/model.safetensors",
                                  "ema/model.safetensors"])
def test_one_flipped_byte_is_found_and_named(tmp_path, name, capsys):
    store = saved(tmp_path, 1, 2)
    file = tmp_path / "step_00000002" / name
    data = bytearray(file.read_bytes())
    for position in random.Random(0).sample(range(len(data)), 10):
        damaged = data.copy()
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        assert store.newest().step == 1
        assert str(file) in capsys.readouterr().out
    file.write_bytes(data)
    assert store.newest().step == 2


def test_a_missing_or_shortened_file_is_named_and_the_one_before_used(tmp_path, capsys):
    store = saved(tmp_path, 1, 2, 3)
    (tmp_path / "step_00000003" / "ema" / "model.safetensors").unlink()
    file = tmp_path / "step_00000002" / "parameters" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert store.newest().step == 1
    printed = capsys.readouterr().out
    assert "ema/model.safetensors is missing" in printed
    assert str(file) in printed


def test_where_none_is_intact_there_is_an_error_and_no_fresh_start(tmp_path):
    store = saved(tmp_path, 1)
    (tmp_path / "step_00000001" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="none of the 1 checkpoints"):
        store.newest()
    assert CheckpointStore(tmp_path / "elsewhere").newest() is None


def test_every_process_must_agree(tmp_path):
    store = saved(tmp_path, 1, 2)
    verdicts = iter([False, True])
    assert store.newest(agree=lambda intact: intact and next(verdicts)).step == 1


def test_sharing_the_hashing_finds_the_damage_in_one_process(tmp_path):
    saved(tmp_path, 1)
    file = tmp_path / "step_00000001" / "parameters" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found = [problems_of(tmp_path / "step_00000001", part, 2) for part in range(2)]
    assert sorted(map(len, found)) == [0, 1]


def parts_of(array, num_parts):
    """A tensor cut into flat pieces of uneven size, the last of them empty where there are more than two."""
    cuts = [0, *sorted(array.size * (i + 1) // num_parts + 1 for i in range(num_parts - 2)), array.size, array.size]
    cuts = cuts[: num_parts + 1] if num_parts > 2 else [0, array.size // 3, array.size]
    return [Piece(array.reshape(-1)[a:b], array.shape, a) for a, b in zip(cuts, cuts[1:], strict=False)]


@pytest.mark.parametrize("num_parts", [2, 4])
def test_parts_of_several_processes_become_one_checkpoint(tmp_path, num_parts):
    stores = [CheckpointStore(tmp_path, writer=part, num_writers=num_parts) for part in range(num_parts)]
    pieces = {name: parts_of(array, num_parts) for name, array in tensors(3).items()}
    for part, store in reversed(list(enumerate(stores))):
        store.save(3, {"parameters": {name: cut[part] for name, cut in pieces.items()}}, {"step": 3})
    for store in stores:
        store.wait()
    group = CheckpointStore(tmp_path).newest().groups["parameters"]
    for name, array in tensors(3).items():
        np.testing.assert_array_equal(group[name].numpy(), array)
        assert b"".join(group[name].chunks()) == array.tobytes()
    assert read_headers(tmp_path / "step_00000003" / "parameters").keys() == tensors(3).keys()


def test_a_part_that_never_comes_is_an_error_and_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("ospnext_ms.storage.checkpoint_store.PART_TIMEOUT_SECONDS", 0.1)
    store = CheckpointStore(tmp_path, writer=0, num_writers=2)
    store.save(1, {"parameters": tensors(1)}, {})
    with pytest.raises(TimeoutError, match="part-00001"):
        store.wait()
    assert store.newest() is None


def test_a_gap_between_pieces_is_an_error(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, {"parameters": {"a": Piece(np.zeros(3, np.float32), (2, 2), 1)}}, {})
    store.wait()
    with pytest.raises(ValueError, match="gap"):
        open_checkpoint(tmp_path / "step_00000001")


def test_a_failed_save_is_reported_and_leaves_the_others(tmp_path, monkeypatch):
    store = saved(tmp_path, 1)

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("ospnext_ms.storage.checkpoint_store.write_file", full_disk)
    store.save(2, {"parameters": tensors(2)}, {})
    with pytest.raises(OSError, match="no space"):
        store.save(3, {"parameters": tensors(3)}, {})
    assert store.newest().step == 1


def test_a_failed_save_is_seen_at_the_next_look_with_its_name(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.look()

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ospnext_ms.storage.checkpoint_store.write_file", full_disk)
    store.save(2, {"parameters": tensors(2)}, {})
    while store.saving:
        time.sleep(0.01)
    with pytest.raises(OSError, match=r"the checkpoint .*step_00000002 could not be written: No space left"):
        store.look()
    store.look()


def test_space_is_counted_before_a_run(tmp_path, monkeypatch):
    text = CheckpointStore(tmp_path / "new", keep_last=3).check_space(2_000_000)
    assert text.startswith("a checkpoint takes 0.002 GB, up to 4 of them at a time; ")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_999_999))
    with pytest.raises(OSError, match="takes 0.002 GB, all are kept; 0.002 GB are free") as caught:
        CheckpointStore(tmp_path).check_space(2_000_000)
    assert caught.value.errno == errno.ENOSPC


def test_a_checkpoint_that_is_a_link_is_read_and_let_go(tmp_path):
    """Moved to another disk, say: what is removed is the link."""
    saved(tmp_path / "run", 1)
    (tmp_path / "run" / "step_00000001").rename(tmp_path / "elsewhere")
    link = tmp_path / "run" / "step_00000001"
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / ".step_00000009.saving").symlink_to(tmp_path / "elsewhere")
    store = CheckpointStore(tmp_path / "run", keep_last=1)
    assert store.newest().step == 1
    assert store.remove_leftovers() == [".step_00000009.saving"]
    store.save(2, {"parameters": tensors(2)}, {})
    store.wait()
    assert not link.is_symlink()
    assert problems_of(tmp_path / "elsewhere") == []
    link.symlink_to(tmp_path / "gone")
    store = CheckpointStore(tmp_path / "run")
    store.save(1, {"parameters": tensors(1)}, {})
    store.wait()
    assert problems_of(link) == []


def test_a_clean_up_that_fails_stops_nothing(tmp_path, monkeypatch, capsys):
    saved(tmp_path, 1, 2)
    (tmp_path / ".step_00000003.saving").mkdir()

    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", refuse)
    store = CheckpointStore(tmp_path, keep_last=1)
    assert store.remove_leftovers() == []
    store.save(4, {"parameters": tensors(4)}, {})
    store.wait()
    assert store.newest().step == 4
    assert ".step_00000003.saving could not be deleted: [Errno 13]" in capsys.readouterr().out


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="keep_last is 0"):
        CheckpointStore(tmp_path, keep_last=0)
    with pytest.raises(ValueError, match="writer is 2 of 2"):
        CheckpointStore(tmp_path, writer=2, num_writers=2)


SAVER = textwrap.dedent("""
    import sys
    import numpy as np
    from ospnext_ms.storage.checkpoint_store import CheckpointStore

    store = CheckpointStore(sys.argv[1], keep_last=2)
    store.remove_leftovers()
    checkpoint = store.newest()
    step = checkpoint.step if checkpoint else 0
    print("ready", flush=True)
    while True:
        step += 1
        values = {f"weight{i}": np.full((64, 1024), step, np.float32) for i in range(4)}
        store.save(step, {"parameters": values, "ema": values}, {"step": step})
        store.wait()
        print(step, flush=True)
    """)


def test_twenty_kills_at_random_moments_never_cost_a_complete_checkpoint(tmp_path):
    rng = random.Random(1)
    store = CheckpointStore(tmp_path, keep_last=2)
    half_written = 0
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        done = [int(process.stdout.readline()) for _ in range(rng.randrange(3))]
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        done += [int(line) for line in process.communicate()[0].split()]
        half_written += any(entry.name.endswith(".saving") for entry in tmp_path.glob(".step_*"))
        newest = store.newest(report=pytest.fail)
        if done:
            # The kill may fall between the new name and the line that tells of it.
            assert newest.step in (done[-1], done[-1] + 1)
        for name, tensor in (newest.groups["parameters"] if newest else {}).items():
            assert (tensor.numpy() == newest.step).all(), name
            assert newest.state == {"step": newest.step}
    assert newest.step > 2
    assert half_written > 3, "the kills have to fall into savings for this test to mean something"


def test_the_manifest_has_one_form(tmp_path):
    saved(tmp_path, 1)
    file = tmp_path / "step_00000001" / checkpoint_files.MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1))
    assert "checksum" in problems_of(tmp_path / "step_00000001")[0]


@pytest.mark.parametrize("num_parts", [1, 2])
def test_the_converter_exports_a_group_as_it_lies(tmp_path, num_parts):
    stores = [CheckpointStore(tmp_path, writer=part, num_writers=num_parts) for part in range(num_parts)]
    for part, store in enumerate(stores):
        cut = {name: parts_of(array, 2)[part] if num_parts > 1 else array for name, array in tensors(5).items()}
        store.save(5, {"ema": cut}, {})
    for store in stores:
        store.wait()
    source = open_source("dit", tmp_path / "step_00000005" / "ema")
    for name, array in tensors(5).items():
        np.testing.assert_array_equal(source.tensors[name].numpy(), array)
    file = next((tmp_path / "step_00000005" / "ema").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="is refused"):
        open_source("dit", tmp_path / "step_00000005" / "ema")


def test_saving_does_not_wait_for_the_disk_and_the_next_save_does(tmp_path, monkeypatch):
    disk, plain = threading.Event(), checkpoint.write_file

    def slow_disk(*arguments):
        assert disk.wait(20)
        plain(*arguments)

    monkeypatch.setattr(checkpoint, "write_file", slow_disk)
    store = CheckpointStore(tmp_path)
    began = time.perf_counter()
    store.save(1, {"parameters": tensors(1)}, {"step": 1})
    assert time.perf_counter() - began < 5
    assert store.saving
    assert store.paths() == []
    threading.Timer(0.2, disk.set).start()
    store.save(2, {"parameters": tensors(2)}, {"step": 2})
    assert disk.is_set()
    store.wait()
    assert [path.name for path in store.paths()] == ["step_00000001", "step_00000002"]
