"""LoRA adapters between PEFT's form, single files in other names, and merged weights."""

import numpy as np
import pytest

from ospnext_ms.models.lora_config import LoRAConfig
from ospnext_ms.storage.open_weights import read_headers
from ospnext_ms.storage.peft_format import read_adapter, read_stored_adapter, write_adapter
from ospnext_ms.storage.safetensors_io import ArrayTensor, read_header, write_file
from tests.support import adapters as ad
from tools.convert_checkpoint import main

LAYERS = ("blocks.0.self_attn.q", "blocks.0.cross_attn.o", "blocks.1.self_attn.q", "blocks.1.cross_attn.o")
CONFIG = LoRAConfig(rank=2, alpha=6.0, targets=("self_attn.q", "cross_attn.o"))


@pytest.fixture
def arrays():
    return ad.random_pairs(LAYERS)


def run(*arguments):
    return main(["lora", *map(str, arguments)])


def assert_equal(found, arrays):
    assert found.keys() == arrays.keys()
    for layer, pair in arrays.items():
        for array, wanted in zip(found[layer], pair, strict=True):
            np.testing.assert_array_equal(array, wanted)


def test_a_file_becomes_a_folder_that_says_what_it_holds(arrays, tmp_path, capsys):
    """Other ranks on some layers, others not adapted, and differences beside them."""
    arrays["blocks.1.self_attn.q"] = ad.random_pairs(["x"], 3)["x"]
    del arrays["blocks.0.cross_attn.o"]
    named = ad.named(arrays, "diffusion_model.", parts=("lora_down.weight", "lora_up.weight"), alpha=6.0)
    named["diffusion_model.blocks.0.diff_m"] = np.ones((1, 6, 5), np.float32)
    source = ad.write_safetensors(tmp_path / "lora.safetensors", named)
    assert run("--source", source, "--target", tmp_path / "adapter") == 0
    assert "3 layers, rank 2, 3, alpha / rank 2, 3 by alpha tensors\n  1 differences" in capsys.readouterr().out
    found = read_stored_adapter(tmp_path / "adapter")
    assert_equal(found.pairs, arrays)
    assert found.scalings == {"blocks.0.self_attn.q": 3.0, "blocks.1.self_attn.q": 2.0, "blocks.1.cross_attn.o": 3.0}
    np.testing.assert_array_equal(found.differences["blocks.0.modulation"], np.ones((1, 6, 5)))
    with pytest.raises(ValueError, match="can be used, not trained on: it holds more than pairs"):
        read_adapter(tmp_path / "adapter")
    (tmp_path / "adapter" / "differences.safetensors").unlink()
    with pytest.raises(ValueError, match=r"not trained on: ranks \[2, 3\], factors \[2.0, 3.0\]; one of each"):
        read_adapter(tmp_path / "adapter")
    assert run("--source", tmp_path / "adapter", "--target", tmp_path / "again") == 0
    assert read_stored_adapter(tmp_path / "again").scalings == found.scalings


def test_alpha_is_asked_for(arrays, tmp_path, capsys):
    source = ad.write_safetensors(tmp_path / "lora.safetensors", ad.named(arrays))
    assert run("--source", source, "--target", tmp_path / "adapter") == 1
    assert "give --alpha" in capsys.readouterr().err
    assert run("--source", source, "--target", tmp_path / "adapter", "--alpha", 64) == 0
    assert "alpha / rank 32 by --alpha 64" in capsys.readouterr().out
    config, found = read_adapter(tmp_path / "adapter")
    assert (config.rank, config.alpha, config.targets) == (2, 64.0, tuple(sorted(arrays)))
    assert_equal(found, arrays)


def test_to_diffusers_and_back(arrays, tmp_path):
    """The factor is part of B then: a file means the same to those that do not read its header."""
    write_adapter(tmp_path / "adapter", CONFIG, arrays)
    assert run("--source", tmp_path / "adapter", "--target", tmp_path / "d.safetensors", "--direction",
               "mindspore-to-torch", "--target-naming", "diffusers") == 0
    names = read_header(tmp_path / "d.safetensors")[0]
    assert "transformer.blocks.1.attn2.to_out.0.lora_B.weight" in names
    assert all("lora" in name for name in names)
    assert run("--source", tmp_path / "d.safetensors", "--target", tmp_path / "back") == 0
    config, found = read_adapter(tmp_path / "back")
    assert config.alpha == config.rank == 2
    assert_equal(found, {layer: (a, 3 * b) for layer, (a, b) in arrays.items()})


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


def test_merged_differences_and_convolutions(tmp_path):
    rng = np.random.default_rng(2)
    base = {"patch_embedding.weight": (7, 4, 1, 2, 2), "blocks.0.norm3.weight": (5,), "blocks.0.norm3.bias": (5,),
            "head.head.weight": (7, 5)}
    base = {name: rng.standard_normal(shape, np.float32) for name, shape in base.items()}
    source = {"patch_embedding.lora_down.weight": (2, 4, 1, 2, 2), "patch_embedding.lora_up.weight": (7, 2, 1, 1, 1),
              "blocks.0.norm3.diff": (5,), "head.head.diff": (7, 5), "head.head.lora_down.weight": (2, 5),
              "head.head.lora_up.weight": (7, 2)}
    source = {name: rng.standard_normal(shape, np.float32) for name, shape in source.items()}
    ad.write_safetensors(tmp_path / "base.safetensors", base)
    ad.write_safetensors(tmp_path / "l.safetensors", {f"diffusion_model.{name}": x for name, x in source.items()})
    (tmp_path / "dit").mkdir()
    (tmp_path / "base.safetensors").rename(tmp_path / "dit" / "model.safetensors")
    (tmp_path / "dit" / "config.json").write_text('{"num_layers": 1}')
    assert run("--source", tmp_path / "l.safetensors", "--alpha", "rank", "--merge-into", tmp_path / "dit", "--target",
               tmp_path / "merged") == 0
    kernel = np.einsum("or,rcthw->octhw", source["patch_embedding.lora_up.weight"][..., 0, 0, 0],
                       source["patch_embedding.lora_down.weight"])
    head = source["head.head.lora_up.weight"] @ source["head.head.lora_down.weight"] + source["head.head.diff"]
    added = {"patch_embedding.weight": kernel, "blocks.0.norm3.weight": source["blocks.0.norm3.diff"],
             "blocks.0.norm3.bias": 0, "head.head.weight": head}
    for name, tensor in read_headers(tmp_path / "merged").items():
        np.testing.assert_allclose(tensor.numpy(), base[name] + added[name], rtol=1e-5, atol=1e-6)
    assert (tmp_path / "merged" / "config.json").read_text() == '{"num_layers": 1}'


def test_adapters_that_do_not_fit(arrays, tmp_path, capsys):
    write_adapter(tmp_path / "adapter", CONFIG, arrays)
    narrow = ArrayTensor(np.zeros((7, 4), np.float32))
    write_file(tmp_path / "base.safetensors", {"blocks.0.self_attn.q.weight": narrow})
    assert run("--source", tmp_path / "adapter", "--merge-into", tmp_path / "base.safetensors", "--target",
               tmp_path / "merged") == 1
    error = capsys.readouterr().err
    assert "blocks.0.cross_attn.o.weight is nothing instead of floats (7, 5)" in error
    assert "blocks.0.self_attn.q.weight is F32 (7, 4) instead of floats (7, 5)" in error
    assert not (tmp_path / "merged").exists()


def test_options_that_do_not_go_together(arrays, tmp_path, capsys):
    write_adapter(tmp_path / "adapter", CONFIG, arrays)
    assert run("--source", tmp_path / "adapter", "--target", tmp_path / "x", "--target-naming", "diffusers") == 1
    assert "go with --direction mindspore-to-torch" in capsys.readouterr().err
    for arguments in (["dit", "--merge-into", "c"], ["dit", "--alpha", "3"], ["lora", "--alpha", "-1"],
                      ["lora", "--alpha", "much"]):
        with pytest.raises(SystemExit):
            main([*arguments, "--source", "a", "--target", "b"])


def test_differences_have_no_place_in_diffusers_form(arrays, tmp_path, capsys):
    named = ad.named(arrays, alpha=6.0) | {"blocks.0.norm3.diff": np.ones(5, np.float32)}
    source = ad.write_safetensors(tmp_path / "l.safetensors", named)
    assert run("--source", source, "--target", tmp_path / "d.safetensors", "--direction", "mindspore-to-torch",
               "--target-naming", "diffusers") == 1
    assert "no place for 1 differences of parameters (blocks.0.norm3.weight): merge with" in capsys.readouterr().err
