"""LoRA adapters between PEFT's form, single files in other names, and merged weights."""

import numpy as np
import pytest

from ospnext_ms.models.lora_config import LoRAConfig
from ospnext_ms.storage.open_weights import read_headers
from ospnext_ms.storage.peft_format import read_adapter, write_adapter
from ospnext_ms.storage.safetensors_io import ArrayTensor, read_header, write_file
from tools.convert_checkpoint import main

LAYERS = ("blocks.0.self_attn.q", "blocks.0.cross_attn.o", "blocks.1.self_attn.q", "blocks.1.cross_attn.o")
CONFIG = LoRAConfig(rank=2, alpha=6.0, targets=("self_attn.q", "cross_attn.o"))
DIFFUSERS = {"self_attn.q": "attn1.to_q", "cross_attn.o": "attn2.to_out.0"}


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {layer: (rng.standard_normal((2, 5), dtype=np.float32), rng.standard_normal((7, 2), dtype=np.float32))
            for layer in LAYERS}


def run(*arguments):
    return main(["lora", *map(str, arguments)])


def assert_equal(found, arrays):
    assert found.keys() == arrays.keys()
    for layer, pair in arrays.items():
        for array, wanted in zip(found[layer], pair, strict=True):
            np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize(("prefix", "names", "parts", "alpha"), [
    ("transformer.", "diffusers", ("lora_A", "lora_B"), None),
    ("transformer.", "diffusers", ("lora_A", "lora_B"), 6.0),
    ("diffusion_model.", "original", ("lora_down", "lora_up"), 6.0),
    ("", "original", ("lora_A", "lora_B"), 6.0),
])
def test_single_files_become_peft_folders(arrays, tmp_path, prefix, names, parts, alpha):
    tensors = {}
    for layer, pair in arrays.items():
        head, tail = layer[: len("blocks.0.")], layer[len("blocks.0."):]
        name = prefix + head + (DIFFUSERS[tail] if names == "diffusers" else tail)
        tensors |= {f"{name}.{part}.weight": ArrayTensor(array) for part, array in zip(parts, pair, strict=True)}
        if alpha is not None:
            tensors[f"{name}.alpha"] = ArrayTensor(np.array(alpha, np.float32))
    write_file(tmp_path / "lora.safetensors", tensors)
    assert run("--source", tmp_path / "lora.safetensors", "--target", tmp_path / "adapter") == 0
    config, found = read_adapter(tmp_path / "adapter")
    assert (config.rank, config.alpha) == (2, 2.0 if alpha is None else alpha)
    assert config.targets == ("cross_attn.o", "self_attn.q")
    assert_equal(found, arrays)


def test_to_diffusers_and_back(arrays, tmp_path):
    write_adapter(tmp_path / "adapter", CONFIG, arrays)
    assert run("--source", tmp_path / "adapter", "--target", tmp_path / "d.safetensors", "--direction",
               "mindspore-to-torch", "--target-naming", "diffusers") == 0
    names = read_header(tmp_path / "d.safetensors")[0]
    assert "transformer.blocks.1.attn2.to_out.0.lora_B.weight" in names
    assert run("--source", tmp_path / "d.safetensors", "--target", tmp_path / "back") == 0
    config, found = read_adapter(tmp_path / "back")
    assert config.alpha == 6.0
    assert_equal(found, arrays)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_merge(arrays, tmp_path, dtype):
    rng = np.random.default_rng(1)
    base = {f"{layer}.weight": rng.standard_normal((7, 5)).astype(dtype) for layer in LAYERS}
    base |= {"head.head.bias": rng.standard_normal(3).astype(dtype)}
    write_file(tmp_path / "base.safetensors", {name: ArrayTensor(array) for name, array in base.items()})
    write_adapter(tmp_path / "adapter", CONFIG, arrays)
    assert run("--source", tmp_path / "adapter", "--merge-into", tmp_path / "base.safetensors", "--target",
               tmp_path / "merged") == 0
    merged = {name: tensor.numpy() for name, tensor in read_headers(tmp_path / "merged").items()}
    assert merged.keys() == base.keys()
    np.testing.assert_array_equal(merged["head.head.bias"], base["head.head.bias"])
    for layer, (a, b) in arrays.items():
        expected = base[f"{layer}.weight"].astype(np.float64) + 3.0 * b.astype(np.float64) @ a
        np.testing.assert_allclose(merged[f"{layer}.weight"], expected, rtol=1e-6 if dtype == np.float32 else 1e-3)
        assert merged[f"{layer}.weight"].dtype == dtype


def test_adapters_that_do_not_fit(arrays, tmp_path, capsys):
    write_adapter(tmp_path / "adapter", CONFIG, arrays)
    narrow = ArrayTensor(np.zeros((7, 4), np.float32))
    write_file(tmp_path / "base.safetensors", {"blocks.0.self_attn.q.weight": narrow})
    assert run("--source", tmp_path / "adapter", "--merge-into", tmp_path / "base.safetensors", "--target",
               tmp_path / "merged") == 1
    assert "blocks.0.cross_attn.o.weight is nothing" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
    odd = {f"blocks.0.norm1.{part}.weight": ArrayTensor(array)
           for part, array in zip(("lora_A", "lora_B"), arrays[LAYERS[0]], strict=True)}
    write_file(tmp_path / "odd.safetensors", odd)
    assert run("--source", tmp_path / "odd.safetensors", "--target", tmp_path / "nothing") == 1
    assert "blocks.0.norm1, which is no linear layer" in capsys.readouterr().err


def test_options_that_do_not_go_together(arrays, tmp_path, capsys):
    write_adapter(tmp_path / "adapter", CONFIG, arrays)
    assert run("--source", tmp_path / "adapter", "--target", tmp_path / "x", "--target-naming", "diffusers") == 1
    assert "go with --direction mindspore-to-torch" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["dit", "--source", "a", "--target", "b", "--merge-into", "c"])
