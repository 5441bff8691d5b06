"""The converter from end to end: bit for bit, nothing half done, bounded memory."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from ospnext_ms.models.parameters import expected_shapes
from ospnext_ms.storage.open_weights import read_headers
from tests.support.checkpoints import DTYPES, SIZES, random_state, state_bytes, stored_bytes, write_source
from tests.support.paths import ROOT
from tools.conversion import torch_file
from tools.conversion.convert import convert
from tools.convert_checkpoint import main

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")



@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize("source", ["w.safetensors", "w.pth", "folder"])
def test_there_and_back_bit_for_bit(tmp_path, kind, naming, source):
    state = random_state(kind, naming, tuple(DTYPES.values()))
    source = write_source(tmp_path / source, state, shards=3)
    convert(kind, source, tmp_path / "ms", max_shard_bytes=sum(tensor.nbytes for tensor in state.values()) / 2)
    assert len(list((tmp_path / "ms").glob("*.safetensors"))) > 1
    assert stored_bytes(tmp_path / "ms") == state_bytes(random_state(kind, "original", tuple(DTYPES.values())))
    back = {"direction": "mindspore-to-torch", "target_naming": naming}
    convert(kind, tmp_path / "ms", tmp_path / "back.safetensors", **back)
    assert state_bytes(safetensors_torch.load_file(tmp_path / "back.safetensors")) == state_bytes(state)
    convert(kind, tmp_path / "ms", tmp_path / "back.pth", **back)
    assert state_bytes(torch.load(tmp_path / "back.pth", weights_only=True)) == state_bytes(state)


@pytest.mark.parametrize("kind", SIZES)
def test_weights_of_the_original_networks(tmp_path, golden, kind):
    source = golden / f"{kind}_weights.safetensors"
    convert(kind, source, tmp_path / "ms")
    assert stored_bytes(tmp_path / "ms") == state_bytes(safetensors_torch.load_file(source))


def test_mindspore_loads_the_result(tmp_path):
    mindspore = pytest.importorskip("mindspore")
    state = random_state("umt5", "diffusers", (torch.bfloat16,))
    convert("umt5", write_source(tmp_path / "w.pth", state), tmp_path / "ms.safetensors")
    loaded = mindspore.load_checkpoint(str(tmp_path / "ms.safetensors"), format="safetensors")
    actual = {name: ("BF16", tensor.shape, tensor.asnumpy().tobytes()) for name, tensor in loaded.items()}
    assert actual == state_bytes(random_state("umt5", "original", (torch.bfloat16,)))


def test_shards_stay_below_the_limit(tmp_path):
    convert("vae", write_source(tmp_path / "w.pth", random_state("vae")), tmp_path / "ms", max_shard_bytes=30000)
    index = json.loads((tmp_path / "ms" / "model.safetensors.index.json").read_text())
    sizes = {}
    for name, tensor in read_headers(tmp_path / "ms").items():
        assert tensor.path.name == index["weight_map"][name]
        sizes.setdefault(tensor.path, []).append(tensor.nbytes)
    assert all(sum(shard) <= 30000 or len(shard) == 1 for shard in sizes.values())
    assert index["metadata"]["total_size"] == sum(map(sum, sizes.values()))


def test_diffusers_loads_what_goes_back_to_it(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.AutoencoderKLWan(base_dim=6, z_dim=16)
    model.save_pretrained(tmp_path / "theirs")
    convert("vae", tmp_path / "theirs", tmp_path / "ms")
    convert("vae", tmp_path / "ms", tmp_path / "back", "mindspore-to-torch", target_naming="diffusers")
    again = diffusers.AutoencoderKLWan.from_pretrained(tmp_path / "back", low_cpu_mem_usage=False)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_wan_folder_holds_all_three(tmp_path):
    folder = write_source(tmp_path / "Wan2.1", random_state("dit"), shards=2)
    torch.save(random_state("vae"), folder / "Wan2.1_VAE.pth")
    torch.save(random_state("umt5"), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    config = {"_class_name": "WanModel", "dim": 16, "ffn_dim": 24, "freq_dim": 8, "in_dim": 16, "num_layers": 2,
              "num_heads": 2, "out_dim": 16}
    (folder / "config.json").write_text(json.dumps(config))
    for kind in SIZES:
        summary = convert(kind, folder, tmp_path / kind)
        assert stored_bytes(tmp_path / kind) == state_bytes(random_state(kind))
        assert ("config.json" in summary.sizes_origin) == (kind == "dit")
    assert json.loads((tmp_path / "dit" / "config.json").read_text()) == config
    assert not (tmp_path / "vae" / "config.json").exists()


def test_pipeline_folder_of_diffusers(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    for kind, name in (("dit", "transformer"), ("vae", "vae"), ("umt5", "text_encoder")):
        write_source(tmp_path / name, random_state(kind, "diffusers"), shards=2)
        convert(kind, tmp_path, tmp_path / "out" / kind)
        assert stored_bytes(tmp_path / "out" / kind) == state_bytes(random_state(kind))


def test_config_json_tells_of_a_lost_layer(tmp_path):
    state = {name: tensor for name, tensor in random_state("dit").items() if not name.startswith("blocks.1.")}
    folder = write_source(tmp_path / "folder", state, shards=2)
    (folder / "config.json").write_text(json.dumps({"_class_name": "WanModel", "num_layers": 2}))
    with pytest.raises(ValueError, match=r"missing \(27\): blocks\.1\.modulation, .*, \.\.\. 17 more"):
        convert("dit", folder, tmp_path / "ms")
    assert not (tmp_path / "ms").exists()


@pytest.mark.parametrize("text", ['{"num_layers": 3}', "model:\n  dit:\n    num_layers: 3\n"])
def test_config_on_the_command_line_rules(tmp_path, text, capsys):
    config = tmp_path / "c"
    config.write_text(text)
    source = write_source(tmp_path / "w.safetensors", random_state("dit"))
    assert main(["dit", "--source", str(source), "--target", str(tmp_path / "ms"), "--config", str(config)]) == 1
    assert "missing (27): blocks.2.modulation" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_every_misfit_is_listed_and_nothing_written(tmp_path, suffix):
    state = random_state("dit", "diffusers")
    state["blocks.1.norm2.weight"] = torch.zeros(17)
    state["blocks.1.norm3.weight"] = torch.zeros(16)
    state["proj_out.bias"] = torch.zeros(64, dtype=torch.int64)
    del state["blocks.0.attn2.to_out.0.bias"]
    source = write_source(tmp_path / f"w{suffix}", state)
    with pytest.raises(ValueError, match="nothing was written") as error:
        convert("dit", source, tmp_path / "out" / "ms")
    assert "missing (1): blocks.0.attn2.to_out.0.bias" in str(error.value)
    assert "unexpected (1): blocks.1.norm3.weight" in str(error.value)
    assert "misshapen (1): blocks.1.norm2.weight (17,) instead of (16,)" in str(error.value)
    assert "no floating-point weights (1): proj_out.bias I64" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_wrong_kind_is_named(tmp_path):
    source = write_source(tmp_path / "w.pth", random_state("vae"))
    with pytest.raises(ValueError, match="no dit checkpoint.*patch_embedding.weight is missing; it holds 194 tensors"):
        convert("dit", source, tmp_path / "ms")


def test_what_is_left_out_is_said(tmp_path, capsys):
    state = random_state("umt5", "diffusers") | {"lm_head.weight": torch.zeros(3), "decoder.x": torch.zeros(1)}
    state["encoder.embed_tokens.weight"] = state["shared.weight"].clone()
    source = write_source(tmp_path / "w.safetensors", state)
    assert main(["umt5", "--source", str(source), "--target", str(tmp_path / "ms")]) == 0
    output = capsys.readouterr().out
    assert "left out, a second name of shared.weight (1): encoder.embed_tokens.weight" in output
    assert "left out, the decoder of a full UMT5 (1): decoder.x" in output
    assert "left out, the output layer of a full UMT5 (1): lm_head.weight" in output
    assert f"{len(random_state('umt5'))} tensors ({len(random_state('umt5'))} F32)" in output
    assert stored_bytes(tmp_path / "ms") == state_bytes(random_state("umt5"))


def test_missing_shards_are_named(tmp_path):
    folder = write_source(tmp_path / "folder", random_state("dit"), shards=4)
    for i in (2, 4):
        (folder / f"diffusion_pytorch_model-0000{i}-of-00004.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="00002-of-00004.safetensors, .*00004-of-00004.safetensors"):
        convert("dit", folder, tmp_path / "ms")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_truncated_file_is_named(tmp_path, name):
    source = write_source(tmp_path / name, random_state("dit"))
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{name}.* truncated"):
        convert("dit", source, tmp_path / "ms")
    assert not (tmp_path / "ms").exists()


@pytest.mark.parametrize("target", ["ms", "ms.safetensors", "ms.pth"])
@pytest.mark.parametrize("exists", [False, True])
def test_full_disk_leaves_no_broken_file(tmp_path, monkeypatch, target, exists):
    source = write_source(tmp_path / "w.safetensors", random_state("vae"))
    target, options = tmp_path / "out" / target, {"direction": "mindspore-to-torch", "max_shard_bytes": 20000}
    target.parent.mkdir()
    if exists:
        convert("vae", source, target, **options)
    before = {path: path.read_bytes() for path in target.parent.rglob("*") if path.is_file()}
    sync, calls = os.fsync, []

    def full_on_the_last(descriptor):
        calls.append(descriptor)
        if len(calls) >= (6 if target.suffix == "" else 1):
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full_on_the_last)
    with pytest.raises(OSError, match="No space left"):
        convert("vae", source, target, overwrite=True, **options)
    assert {path: path.read_bytes() for path in target.parent.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in target.parent.iterdir()) == ([target.name] if exists else [])


def test_small_disk_is_noticed_before(tmp_path, monkeypatch):
    from tools.conversion import convert as module

    source = write_source(tmp_path / "w.safetensors", random_state("vae"))
    usage = type(module.shutil.disk_usage(tmp_path))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(OSError, match="are to be written"):
        convert("vae", source, tmp_path / "out" / "ms")
    assert not (tmp_path / "out").exists()


def test_existing_target_needs_overwrite(tmp_path, capsys):
    source = write_source(tmp_path / "w.safetensors", random_state("vae"))
    command = ["vae", "--source", str(source), "--target", str(tmp_path / "ms")]
    assert main(command) == 0
    assert main(command) == 1
    assert "already exists" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


@pytest.mark.parametrize(("options", "message"), [
    ({"target": "ms", "target_naming": "diffusers"}, "the MindSpore networks have the original names"),
    ({"target": "w.pth"}, "MindSpore does not read w.pth"),
    ({"target": "w.ckpt"}, "cannot write w.ckpt"),
    ({"target": "ms", "direction": "sideways"}, "valid: torch-to-mindspore, mindspore-to-torch"),
])
def test_options_that_do_not_go_together(tmp_path, options, message):
    source = write_source(tmp_path / "w.safetensors", random_state("vae"))
    with pytest.raises(ValueError, match=message):
        convert("vae", source, **{**options, "target": tmp_path / options["target"]})


def test_source_of_another_format(tmp_path):
    (tmp_path / "w.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"w\.ckpt is of no known format; valid: \.safetensors, \.pth"):
        convert("vae", tmp_path / "w.ckpt", tmp_path / "ms")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        convert("vae", tmp_path / "nowhere", tmp_path / "ms")


def test_the_command_line_from_anywhere(tmp_path):
    source = write_source(tmp_path / "w.safetensors", random_state("vae"))
    command = [sys.executable, str(ROOT / "tools" / "convert_checkpoint.py"), "vae",
               "--source", str(source), "--target", "ms"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "194 tensors (194 F32)" in done.stdout
    assert stored_bytes(tmp_path / "ms") == state_bytes(random_state("vae"))


def test_a_write_that_really_fails(tmp_path):
    resource = pytest.importorskip("resource")
    source = write_source(tmp_path / "w.safetensors", random_state("vae"))
    command = [sys.executable, str(ROOT / "tools" / "convert_checkpoint.py"), "vae", "--source", str(source),
               "--target", str(tmp_path / "out" / "ms")]
    done = subprocess.run(command, capture_output=True, text=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000)))
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


MEASURE = """
import sys
from tests.support.resident import resident
from tools.convert_checkpoint import main
status = main(sys.argv[1:])
print("PEAK", resident())
sys.exit(status)
"""


def run_measured(*arguments):
    """Runs the converter in a process of its own and returns its peak resident memory in bytes."""
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, arguments)], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("PEAK")[1])


def digest(chunks):
    sha = hashlib.sha256()
    for chunk in chunks:
        sha.update(chunk)
    return sha.hexdigest()


@pytest.fixture
def large_folder(tmp_path):
    """A temporary folder that is emptied at once: pytest would keep its gigabytes for three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("source", ["folder", "w.pth"])
def test_6_gb_pass_through_2_gib(large_folder, source):
    sizes = {"vocab_size": 256384, "dim": 4096, "ffn_dim": 10240, "num_heads": 64, "num_layers": 10, "num_buckets": 32}
    state = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in expected_shapes("umt5", sizes).items()}
    for i, tensor in enumerate(state.values()):
        tensor.view(torch.int16).random_(generator=torch.Generator().manual_seed(i))
    assert max(tensor.nbytes for tensor in state.values()) > 2.1e9
    assert sum(tensor.nbytes for tensor in state.values()) > 5.9e9
    source = write_source(large_folder / source, state, shards=3)
    expected = {name: digest([tensor.reshape(-1).view(torch.uint8).numpy()]) for name, tensor in state.items()}
    del state, tensor
    there, back = large_folder / "ms", large_folder / "back.pth"
    start = time.monotonic()
    peak = run_measured("umt5", "--source", source, "--target", there)
    print(f"\n{source.name}: {time.monotonic() - start:.0f} s, peak resident memory {peak / 2**30:.2f} GiB")
    assert peak < 2 * 2**30
    assert {name: digest(tensor.chunks()) for name, tensor in read_headers(there).items()} == expected
    if source.suffix == ".pth":
        return
    shutil.rmtree(source)
    peak = run_measured("umt5", "--source", there, "--target", back, "--direction", "mindspore-to-torch")
    print(f"towards .pth: peak resident memory {peak / 2**30:.2f} GiB")
    assert peak < 2.1e9 + 2**29, "the largest tensor and half a GiB"
    assert {name: digest(t.chunks()) for name, t in torch_file.read_torch_file(back)[0][""].items()} == expected
