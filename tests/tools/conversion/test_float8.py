"""Float8 weights of ComfyUI become the bf16 numbers that they stand for."""

import numpy as np
import pytest

from ospnext_ms.models.parameters import expected_shapes
from ospnext_ms.storage.open_weights import read_headers
from tests.support.checkpoints import SIZES, write_source
from tools.conversion import float8
from tools.conversion.names import to_naming
from tools.convert_checkpoint import main

torch = pytest.importorskip("torch")

DTYPES = {"e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def state_in_float8(kind, dtype, scale=None, naming="original"):
    """(tensors of a checkpoint whose matrices are float8, what they stand for in fp32)."""
    rng = np.random.default_rng(0)
    state, values = {}, {}
    for name, shape in expected_shapes(kind, SIZES[kind]).items():
        stored = to_naming(kind, name, naming)
        tensor = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
        if len(shape) != 2:
            state[stored], values[name] = tensor, tensor
            continue
        factor = {None: torch.ones(()), "one": torch.tensor(0.037), "rows": torch.rand(shape[0], 1) + 0.1}[scale]
        state[stored] = (tensor / factor).to(dtype)
        values[name] = state[stored].float() * factor
        if scale:
            state[stored.removesuffix("weight") + "scale_weight"] = factor
    return state, values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [None, "one", "rows"])
def test_transformers(tmp_path, monkeypatch, capsys, dtype, scale):
    monkeypatch.setattr(float8, "_PIECE", 50)
    state, values = state_in_float8("dit", DTYPES[dtype], scale)
    if scale:
        state |= {"scaled_fp8": torch.zeros(2, dtype=DTYPES[dtype]), "head.head.scale_input": torch.ones(1)}
    source = write_source(tmp_path / "w.safetensors", state)
    assert main(["dit", "--source", str(source), "--target", str(tmp_path / "ms")]) == 0
    output = capsys.readouterr().out
    matrices = sum(value.dim() == 2 for value in values.values())
    ending = " with their scale" if scale else ""
    assert f"dequantised to bf16: {matrices} of float8 {dtype}{ending}\n" in output
    assert ("left out, for computing in float8 (2): " in output) == (scale is not None)
    stored = read_headers(tmp_path / "ms")
    assert stored.keys() == values.keys()
    for name, value in values.items():
        expected = value.bfloat16().float() if value.dim() == 2 else value
        np.testing.assert_array_equal(stored[name].numpy(), expected.numpy(), name)


def test_the_text_encoder_with_newer_names_and_its_tokenizer(tmp_path):
    state, values = state_in_float8("umt5", torch.float8_e4m3fn, "one", "diffusers")
    state = {name.replace("scale_weight", "weight_scale"): tensor for name, tensor in state.items()}
    state["spiece_model"] = torch.zeros(9, dtype=torch.uint8)
    source = write_source(tmp_path / "w.safetensors", state)
    assert main(["umt5", "--source", str(source), "--target", str(tmp_path / "ms")]) == 0
    stored = read_headers(tmp_path / "ms")
    for name, value in values.items():
        np.testing.assert_array_equal(stored[name].numpy(), (value.bfloat16() if value.dim() == 2 else value).float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_codes(dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    stored = {"e4m3fn": "F8_E4M3", "e5m2": "F8_E5M2"}[dtype]
    np.testing.assert_array_equal(float8._values(stored), codes.view(DTYPES[dtype]).float().numpy())


@pytest.mark.parametrize(("changes", "message"), [
    ({"head.head.scale_weight": torch.ones(3)}, r"the scale of head.head.weight \(64, 16\) has 3 numbers"),
    ({"blocks.0.norm3.scale_weight": torch.ones(1)}, "a scale without float8 codes: blocks.0.norm3.weight"),
])
def test_scales_that_do_not_fit(tmp_path, capsys, changes, message):
    import re

    state, _ = state_in_float8("dit", torch.float8_e4m3fn, "one")
    source = write_source(tmp_path / "w.safetensors", state | changes)
    assert main(["dit", "--source", str(source), "--target", str(tmp_path / "ms")]) == 1
    assert re.search(message, capsys.readouterr().err)
