"""Weights of a wider network, in the form that the experiment starts from."""

import torch

from tools.experiments import wide_start
from tools.tiny_family.recipe import load_recipe
from tools.torch_reference.dit import OSPNextDiT
from tools.torch_reference.loading import load


def test_the_experiment_can_start_from_what_is_written(tmp_path, capsys):
    path = tmp_path / "wide" / "dit.safetensors"
    wide_start.main(["--times", "2", "--minutes", "1", "--steps", "1", "--clips", "2", "--batch-size", "1",
                     "--output", str(path)])
    model = load(OSPNextDiT(wide_start.widened(load_recipe().dit_sparse, 2)), path)
    assert model.config.dim == 256
    assert model.config.head_dim == 32
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert f"load_checkpoint={path} --set model.dit.dim=256" in capsys.readouterr().out
