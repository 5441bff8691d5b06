"""HiF8 checkpoints: what the converter writes, and what the package reads back."""

import json

import numpy as np
import pytest

from ospnext_ms.models.parameters import expected_shapes
from ospnext_ms.quant.hif8 import encode, quantize_dequantize
from ospnext_ms.storage.hif8_weights import SCALE_SUFFIX, quantised_names
from ospnext_ms.storage.open_weights import open_weights, read_headers
from tests.support.checkpoints import DTYPES, SIZES
from tests.support.paths import FACTS
from tools.conversion import quantised
from tools.conversion.convert import convert
from tools.convert_checkpoint import main

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")


def normal_state(dtype):
    """A transformer's weights, one matrix all zero."""
    generator = torch.Generator().manual_seed(0)
    state = {name: (0.05 * torch.randn(shape, generator=generator)).to(dtype)
             for name, shape in expected_shapes("dit", SIZES["dit"]).items()}
    state["blocks.1.ffn.2.weight"].zero_()
    return state


@pytest.fixture(params=list(DTYPES))
def source(request, tmp_path):
    state = normal_state(DTYPES[request.param])
    safetensors_torch.save_file(state, tmp_path / "source.safetensors")
    return tmp_path / "source.safetensors", {name: tensor.float().numpy() for name, tensor in state.items()}


@pytest.mark.parametrize("slice_bytes", [64 << 20, 101])
def test_matrices_of_the_recipe_are_stored_in_eight_bits(source, tmp_path, monkeypatch, slice_bytes):
    path, state = source
    chunks = type(read_headers(path)["head.head.bias"]).chunks
    monkeypatch.setattr("ospnext_ms.storage.safetensors_io.StoredTensor.chunks", lambda self: chunks(self, slice_bytes))
    summary = convert("dit", path, tmp_path / "hif8", quant="hif8", max_shard_bytes=4000)
    stored, read = read_headers(tmp_path / "hif8"), open_weights(tmp_path / "hif8")
    assert set(read) == set(state)
    assert {name for name, tensor in stored.items() if tensor.dtype == "U8"} == set(summary.hif8_errors)
    assert len(summary.hif8_errors) == 2 * 10
    for name, weight in state.items():
        expected = weight
        if name in summary.hif8_errors:
            expected = quantize_dequantize(weight, 15.0)
            error = np.linalg.norm(read[name].numpy() - weight) / max(np.linalg.norm(weight), 1e-30)
            assert abs(summary.hif8_errors[name] - error) < 1e-6
            assert error < 0.05
        assert read[name].shape == weight.shape
        assert np.allclose(read[name].numpy(), expected, rtol=1e-6, atol=0), name


def test_quantising_what_was_read_back_gives_the_same_codes(source, tmp_path):
    convert("dit", source[0], tmp_path / "hif8.safetensors", quant="hif8")
    for name, tensor in open_weights(tmp_path / "hif8.safetensors").items():
        if name in quantised_names(source[1]):
            weight = tensor.numpy()
            amax = np.abs(weight).max()
            assert np.array_equal(encode(weight * np.float32(15 / amax)) if amax else 0 * weight,
                                  tensor.codes.numpy())


@pytest.mark.parametrize(("size", "ratio"), [("14b", 0.508), ("1_3b", 0.51)])
def test_size_against_bf16(size, ratio):
    shapes = json.loads((FACTS / f"dit_{size}_names.json").read_text())
    count = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    codes = quantised_names(shapes)
    stored = sum(count[name] + 4 if name in codes else 2 * count[name] for name in count)
    assert round(stored / (2 * sum(count.values())), 3) == ratio


def test_command_line_reports_every_error(source, tmp_path, capsys):
    report = tmp_path / "report.json"
    arguments = ["dit", "--source", str(source[0]), "--target", str(tmp_path / "w.safetensors")]
    assert main([*arguments, "--quant", "hif8", "--quant-report", str(report)]) == 0
    assert "HiF8: 20 tensors, relative error 0.0000 (blocks.1.ffn.2.weight) to" in capsys.readouterr().out
    assert set(json.loads(report.read_text())) == set(quantised_names(source[1]))
    with pytest.raises(SystemExit):
        main([*arguments, "--quant-report", str(report)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quant": "int8"}, "quant is 'int8'; valid: hif8"),
        ({"kind": "vae"}, "goes with dit and torch-to-mindspore, not with vae"),
        ({"direction": "mindspore-to-torch"}, "not with dit and mindspore-to-torch"),
    ],
)
def test_options_that_do_not_fit_are_refused(source, tmp_path, changes, words):
    arguments = {"kind": "dit", "source": source[0], "target": tmp_path / "w.safetensors", "quant": "hif8"} | changes
    with pytest.raises(ValueError, match=words):
        convert(**arguments)
    assert not (tmp_path / "w.safetensors").exists()


def test_weights_that_are_not_finite_are_refused():
    class Infinite:
        dtype, shape, nbytes = "F32", (2,), 8

        def chunks(self):
            yield np.array([1, np.inf], np.float32).tobytes()

    with pytest.raises(ValueError, match="largest absolute value is inf"):
        quantised.quantise({"blocks.0.ffn.0.weight": Infinite()})


def test_codes_without_their_scale_are_refused(source, tmp_path):
    convert("dit", source[0], tmp_path / "w.safetensors", quant="hif8")
    state = safetensors_torch.load_file(tmp_path / "w.safetensors")
    del state["blocks.0.ffn.0.weight" + SCALE_SUFFIX]
    safetensors_torch.save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=r"do not go together: blocks.0.ffn.0.weight$"):
        open_weights(tmp_path / "broken.safetensors")


def test_a_network_loads_it(source, tmp_path):
    from ospnext_ms.models.dit import DiTConfig, OSPNextDiT
    from ospnext_ms.quant.network import quantized_parts
    from ospnext_ms.storage.weights import load_weights

    sizes = {name: SIZES["dit"][name] for name in ("dim", "ffn_dim", "num_layers", "freq_dim", "text_dim")}
    config = DiTConfig(**sizes, num_heads=2, text_len=4, skiparse="full", quant="hif8")
    net = OSPNextDiT(config, **quantized_parts(config))
    convert("dit", source[0], tmp_path / "w.safetensors", quant="hif8")
    load_weights(net, tmp_path / "w.safetensors")
    expected = open_weights(tmp_path / "w.safetensors")
    assert all(np.array_equal(p.asnumpy(), expected[p.name].numpy()) for p in net.get_parameters())
