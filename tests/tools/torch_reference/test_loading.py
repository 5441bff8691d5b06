"""Strict loading of both file formats."""

import pytest

torch = pytest.importorskip("torch", reason="the reference networks need PyTorch")

from safetensors.torch import save_file  # noqa: E402

from tools.torch_reference.loading import load  # noqa: E402


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_round_trip(tmp_path, suffix):
    source, target = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    assert load(target, path) is target
    assert torch.equal(target.weight, source.weight)
    with pytest.raises(RuntimeError, match="bias"):
        load(torch.nn.Linear(3, 4, bias=False), path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load(torch.nn.Linear(3, 5), path)


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        load(torch.nn.Linear(3, 4), tmp_path / "nothing.pth")
    (tmp_path / "weights.ckpt").touch()
    with pytest.raises(ValueError, match="ckpt"):
        load(torch.nn.Linear(3, 4), tmp_path / "weights.ckpt")


def test_code_in_a_pickle_is_not_run(tmp_path):
    torch.save({"weight": print}, tmp_path / "weights.pth")
    with pytest.raises(Exception, match="weights_only|Weights only"):
        load(torch.nn.Linear(3, 4), tmp_path / "weights.pth")
