"""PyTorch's files: read without PyTorch's memory and without ever executing what is in them."""

import pickle
import sys
from pathlib import Path

import pytest

from tests.support.checkpoints import random_state, state_bytes, stored_bytes, write_source
from tools.conversion import torch_file
from tools.conversion.convert import convert
from tools.convert_checkpoint import main

torch = pytest.importorskip("torch")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_pickled_code_is_refused_and_not_executed(tmp_path, form):
    content = {**random_state("vae"), "extra": Payload(tmp_path / "executed")}
    source = tmp_path / "w.pth"
    if form == "bare pickle":
        source.write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    else:
        torch.save(content, source, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match="pickled code" if form == "zip" else "not a zip archive"):
        convert("vae", source, tmp_path / "ms")
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "ms").exists()
    if form == "zip":
        torch.load(source, weights_only=False)
        assert (tmp_path / "executed").exists(), "the payload is harmless, so the test proves nothing"


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapped_state_dict(tmp_path, wrapper):
    torch.save({wrapper: random_state("vae"), "epoch": 3}, tmp_path / "w.pth")
    convert("vae", tmp_path / "w.pth", tmp_path / "ms")
    assert stored_bytes(tmp_path / "ms") == state_bytes(random_state("vae"))


@pytest.mark.parametrize("content", [[1, 2], {"a": 1, "b": torch.zeros(1)}])
def test_pth_with_other_things(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds a list, expected tensors by name|more than tensors by name: a"):
        convert("vae", tmp_path / "w.pth", tmp_path / "ms")


def test_views_and_shared_storage_in_pth(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "CHUNK_BYTES", 100)
    state = random_state("umt5")
    state["blocks.0.ffn.fc1.weight"] = state["blocks.0.ffn.fc1.weight"].T.contiguous().T
    state["blocks.0.attn.q.weight"], state["blocks.0.attn.k.weight"] = torch.randn(33, 16)[1:].chunk(2)
    state["blocks.1.attn.q.weight"] = state["blocks.1.attn.k.weight"]
    torch.save(state, tmp_path / "w.pth")
    convert("umt5", tmp_path / "w.pth", tmp_path / "ms")
    assert stored_bytes(tmp_path / "ms") == state_bytes(state)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the mapping's place is known from /proc")
def test_pth_is_read_from_the_file_not_from_memory(tmp_path):
    torch.save(random_state("vae"), tmp_path / "a name with spaces.pth")
    tensors = torch_file.read_torch_file(tmp_path / "a name with spaces.pth")[0][""]
    assert {type(tensor).__name__ for tensor in tensors.values()} == {"StoredTensor"}


def test_without_torch_the_error_says_so(tmp_path, monkeypatch, capsys):
    state = random_state("vae")
    pth, safe = write_source(tmp_path / "w.pth", state), write_source(tmp_path / "w.safetensors", state)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["vae", "--source", str(pth), "--target", str(tmp_path / "ms")]) == 1
    assert "install PyTorch" in capsys.readouterr().err
    assert main(["vae", "--source", str(safe), "--target", str(tmp_path / "ms")]) == 0


def test_old_torch_is_refused(tmp_path, monkeypatch):
    source = write_source(tmp_path / "w.pth", random_state("vae"))
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ImportError, match=r"2\.5\.1.*2\.6"):
        convert("vae", source, tmp_path / "ms")
