"""A HiF8 checkpoint of the tiny family generates."""

import json

import pytest

from ospnext_ms.__main__ import main
from tests.support.paths import ROOT
from tools.conversion.convert import convert

WEIGHTS = ROOT / "tools" / "tiny_family" / "weights" / "dit_sparse.safetensors"


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the tiny model is not trained yet")
def test_a_converted_checkpoint_generates_in_hif8(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    convert("dit", WEIGHTS, tmp_path / "w.safetensors", quant="hif8")
    assert main(["generate", "--config", "yaml_configs/generate/tiny_hif8.yaml", "--output", str(tmp_path / "out"),
                 "--set", f"model.dit.checkpoint={tmp_path / 'w.safetensors'}", "--set", "sampling.steps=2",
                 "--set", "context.mode=pynative"]) == 0
    assert "HiF8 emulated" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "video_0000.json").read_text())["configuration"]["model"]["dit"]["quant"]
    assert (tmp_path / "out" / "video_0000.mp4").stat().st_size > 1000
