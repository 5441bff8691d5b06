"""Folders in which weights are looked for: what is wrong with one is what is said."""

import json

import numpy as np
import pytest

from ospnext_ms.storage.safetensors_io import ArrayTensor, find_weights_file, write_file
from tools.conversion.source import open_source


def weights(path):
    write_file(path, {"a": ArrayTensor(np.zeros(2, np.float32))}, {})
    return path


def test_a_pipeline_without_the_networks_folder(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    weights(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"a pipeline of diffusers without the folder transformer .*: vae\)"):
        open_source("dit", tmp_path)
    assert list(open_source("vae", tmp_path).tensors) == ["a"]


@pytest.mark.parametrize("pair", [("high_noise_model", "low_noise_model"), ("transformer", "transformer_2")])
def test_a_model_with_two_transformers(tmp_path, pair):
    (tmp_path / "model_index.json").write_text("{}")
    for name in pair:
        weights(tmp_path / name / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=rf"holds two transformers \({' and '.join(pair)}\), as Wan2.2's A14B does"):
        open_source("dit", tmp_path)
    assert list(open_source("dit", tmp_path / pair[1]).tensors) == ["a"]


def test_weights_that_lie_one_folder_below(tmp_path):
    weights(tmp_path / "transformer" / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no .safetensors file in .*; give one of its folders \(transformer\)"):
        find_weights_file(tmp_path)


def test_a_configuration_that_is_nested_too_deeply(tmp_path):
    weights(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="config.json is not JSON"):
        open_source("dit", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"a": 1}))
    assert open_source("dit", tmp_path).config == {"a": 1}


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9876543210\n"


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin", "w.safetensors.index.json", "w.ckpt"])
def test_a_git_lfs_pointer_is_called_one(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(ValueError, match=rf"{name} is a git LFS pointer \(75 bytes\), .* of 9.88 GB .*lfs pull"):
        open_source("dit", tmp_path / name)


def test_a_configuration_that_is_a_pointer(tmp_path):
    weights(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(POINTER)
    with pytest.raises(ValueError, match=r"config.json is a git LFS pointer"):
        open_source("dit", tmp_path)
