"""Parity through files: what is drawn is the same everywhere, and the bounds are those of the errors."""

import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference networks need PyTorch")

from safetensors.numpy import save_file  # noqa: E402

from ospnext_ms.models.config import DiTConfig  # noqa: E402
from tools.torch_reference.gpu import parity  # noqa: E402

SMALL = parity.Case(DiTConfig(dim=24, ffn_dim=32, num_heads=2, num_layers=4, num_full_blocks=0, freq_dim=8, text_dim=6,
                              text_len=4), (1, 3, 4), 1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with MindSpore's file of one small network."""
    monkeypatch.setattr(parity, "CASES", {"small": SMALL})
    monkeypatch.setattr(parity, "ENTRIES", 100)
    parity.write("small", tmp_path)
    return tmp_path


def test_torch_is_mindspore_and_a_changed_file_is_not(folder, capsys):
    result = parity.compare("small", folder, "cpu")
    assert result["failed"] == []
    assert len(result["errors"]) > 80
    assert max(errors["fp32"] for errors in result["errors"].values()) < 1e-5
    assert 1e-3 < result["errors"]["out"]["bf16"] < 2e-2
    parity.print_result(result)
    assert "all within the bounds" in capsys.readouterr().out
    arrays, metadata = parity.read("small", folder)
    assert max(array.size for name, array in arrays.items() if name != "out") == 100
    arrays["gradient.blocks.1.ffn.0.weight"] *= 1.1
    save_file(arrays, folder / "small.safetensors", metadata)
    failed = parity.compare("small", folder, "cpu")["failed"]
    assert len(failed) == 2
    assert all(line.startswith("gradient.blocks.1.ffn.0.weight: ") for line in failed)
    save_file(arrays, folder / "small.safetensors", metadata | {"weights": "0" * 8})
    with pytest.raises(ValueError, match="weights drawn here .* are not those of the file .00000000"):
        parity.compare("small", folder, "cpu")
    save_file(arrays, folder / "small.safetensors", metadata | {"config": json.dumps({"dim": 1})})
    with pytest.raises(ValueError, match="written for another network"):
        parity.compare("small", folder, "cpu")
    with pytest.raises(FileNotFoundError, match="parity write"):
        parity.read("small", folder / "elsewhere")


def test_rounding_may_add_no_more_than_it_costs():
    """bf16 against MindSpore at most twice bf16 against PyTorch's fp32."""
    exact, direction = np.ones(100), np.zeros(100)
    direction[0] = 1
    rounded = {"bf16": {"out": exact + 0.1 * direction}}
    good = parity.judge("x", {"out": exact - 1e-6 * direction}, {"out": exact}, rounded)
    assert good["failed"] == []
    bad = parity.judge("x", {"out": exact - 0.15 * direction}, {"out": exact}, rounded)
    assert [line.split(":")[1].split(" ")[1] for line in bad["failed"]] == ["fp32", "bf16"]
    with pytest.raises(ValueError, match="quantities differ"):
        parity.judge("x", {"out": exact, "y": exact}, {"out": exact}, rounded)


def test_drawn_arrays_do_not_depend_on_each_other():
    weights = parity.draw_weights({"a.weight": (4, 6), "b.bias": (6,)})
    assert np.array_equal(parity.draw_weights({"b.bias": (6,)})["b.bias"], weights["b.bias"])
    assert weights["a.weight"].dtype == np.float32
    assert parity.fingerprint(weights) == parity.fingerprint(dict(reversed(weights.items())))
    assert parity.fingerprint(weights) != parity.fingerprint({**weights, "b.bias": -weights["b.bias"]})
    entries = parity.entries_of("a.weight", 10**6)
    assert len(set(entries.tolist())) == parity.ENTRIES
    assert np.array_equal(entries, parity.entries_of("a.weight", 10**6))
