"""Strict loading and saving of weights, and the safetensors format underneath."""

import json
import re

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ospnext_ms.storage.open_weights import open_headers, read_headers
from ospnext_ms.storage.safetensors_io import ArrayTensor, plan_shards, read_header, write_file
from ospnext_ms.storage.weights import bfloat16_bits, load_weights, save_weights

mindspore = pytest.importorskip("mindspore")


class Toy(mindspore.nn.Cell):
    def __init__(self, dtype=mindspore.float32):
        super().__init__()
        self.weight = mindspore.Parameter(mindspore.Tensor(np.zeros((3, 4)), dtype))
        self.blocks = mindspore.nn.CellList([mindspore.nn.Dense(4, 2, dtype=dtype) for _ in range(2)])


def random_weights(seed=0):
    generator = np.random.default_rng(seed)
    shapes = {name: parameter.shape for name, parameter in Toy().parameters_and_names()}
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def values(cell):
    return {name: parameter.asnumpy() for name, parameter in cell.parameters_and_names()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name, strict=True)


@pytest.mark.parametrize("shard_bytes", [5e9, 48])
@pytest.mark.parametrize("target", ["weights.safetensors", "folder"])
def test_round_trip(tmp_path, target, shard_bytes):
    expected = random_weights()
    source, cell = Toy(), Toy()
    for name, parameter in source.parameters_and_names():
        parameter.set_data(mindspore.Tensor(expected[name]))
    files = save_weights(source, tmp_path / target, max_shard_bytes=shard_bytes)
    assert len(files) == (3 if target == "folder" and shard_bytes == 48 else 1)
    load_weights(cell, tmp_path / target)
    assert_same(values(cell), expected)


@pytest.mark.parametrize("shard", [7, None, [], "../model.safetensors", True])
def test_an_index_of_what_are_no_files(tmp_path, shard):
    save_weights(random_weights(), tmp_path / "model", max_shard_bytes=48)
    index = tmp_path / "model" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["weight"] = shard
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"index\.json (names shards outside its folder|is not an index of shards)"):
        read_headers(index)


def test_index_is_a_path_too(tmp_path):
    expected = random_weights()
    save_weights(expected, tmp_path / "model", max_shard_bytes=48)
    cell = Toy()
    load_weights(cell, tmp_path / "model" / "model.safetensors.index.json")
    assert_same(values(cell), expected)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_mindspore_itself_reads_it(tmp_path, dtype):
    expected = random_weights()
    save_weights(expected, tmp_path / "weights.safetensors", dtype=dtype)
    loaded = mindspore.load_checkpoint(str(tmp_path / "weights.safetensors"), format="safetensors")
    assert {str(tensor.dtype) for tensor in loaded.values()} == {"BFloat16" if dtype else "Float32"}
    cell = Toy(mindspore.bfloat16 if dtype else mindspore.float32)
    assert mindspore.load_param_into_net(cell, loaded, strict_load=True) == ([], [])
    for name, parameter in cell.parameters_and_names():
        bits = bfloat16_bits(expected[name]) if dtype else expected[name].view(np.uint32)
        np.testing.assert_array_equal(parameter.asnumpy().view(bits.dtype), bits)


def test_the_safetensors_package_reads_it(tmp_path):
    tensors = {"a": np.arange(3, dtype=np.int8), "b": np.float64(2.5).reshape(()), "c": np.zeros((0, 4), np.float16),
               "d": np.array([True, False]), "ü": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    write_file(tmp_path / "x.safetensors", {name: ArrayTensor(array) for name, array in tensors.items()}, {"k": "v"})
    assert_same(load_file(tmp_path / "x.safetensors"), tensors)
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata() == {"k": "v"}
    header, metadata = read_header(tmp_path / "x.safetensors")
    assert metadata == {"k": "v"}
    assert_same({name: tensor.numpy() for name, tensor in header.items()}, tensors)
    assert all(tensor.offset % tensor.numpy().itemsize == 0 for tensor in header.values())


def test_reads_what_the_safetensors_package_writes(tmp_path):
    expected = random_weights()
    save_file(expected, tmp_path / "x.safetensors")
    cell = Toy()
    load_weights(cell, tmp_path / "x.safetensors")
    assert_same(values(cell), expected)


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_storage_of_half_width_widens_exactly(tmp_path, stored):
    torch = pytest.importorskip("torch")
    weights = random_weights()
    save_weights(weights, tmp_path / "w.safetensors", dtype=stored)
    cell = Toy()
    load_weights(cell, tmp_path / "w.safetensors")
    assert_same(values(cell), {name: torch.from_numpy(array).to(getattr(torch, stored)).float().numpy()
                               for name, array in weights.items()})


def test_bf16_parameters_keep_their_bits(tmp_path):
    weights = random_weights()
    cell, again = Toy(mindspore.bfloat16), Toy(mindspore.bfloat16)
    save_weights(weights, tmp_path / "fp32.safetensors")
    load_weights(cell, tmp_path / "fp32.safetensors")
    save_weights(cell, tmp_path / "bf16.safetensors")
    assert {tensor.dtype for tensor in read_headers(tmp_path / "bf16.safetensors").values()} == {"BF16"}
    load_weights(again, tmp_path / "bf16.safetensors")
    for name, parameter in again.parameters_and_names():
        np.testing.assert_array_equal(parameter.asnumpy().view(np.uint16), bfloat16_bits(weights[name]))
    save_weights(again, tmp_path / "wide.safetensors", dtype=mindspore.float32)
    assert_same(load_file(tmp_path / "wide.safetensors"),
                {name: (bfloat16_bits(array).astype(np.uint32) << 16).view(np.float32)
                 for name, array in weights.items()})


def test_bfloat16_rounding_is_torchs():
    torch = pytest.importorskip("torch")
    special = [0.0, -0.0, np.inf, -np.inf, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, -3.4e38, 1e-40, 2**-126]
    numbers = np.concatenate([special, np.random.default_rng(0).standard_normal(10000)]).astype(np.float32)
    expected = torch.from_numpy(numbers).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(bfloat16_bits(numbers), expected)
    payload = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan((bfloat16_bits(payload).astype(np.uint32) << 16).view(np.float32)).all()


def test_tensors_larger_than_a_chunk(tmp_path, monkeypatch):
    array = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    save_weights({"a": array}, tmp_path / "x.safetensors", dtype="bfloat16")
    tensor = read_headers(tmp_path / "x.safetensors")["a"]
    whole = tensor.numpy()
    assert [len(chunk) for chunk in tensor.chunks(32)] == [32, 32, 6]
    # An odd limit cuts through elements.
    monkeypatch.setattr(type(tensor).chunks, "__defaults__", (5,))
    np.testing.assert_array_equal(tensor.numpy(), whole)


def test_every_misfit_is_listed_and_nothing_loaded(tmp_path):
    weights = random_weights()
    weights["weight"] = weights["weight"].T.copy()
    weights["extra"] = weights.pop("blocks.0.bias")
    weights["blocks.1.bias"] = np.arange(2)
    save_weights(weights, tmp_path / "x.safetensors")
    cell = Toy()
    before = values(cell)
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        load_weights(cell, tmp_path / "x.safetensors")
    message = str(error.value)
    assert "missing (1): blocks.0.bias" in message
    assert "unexpected (1): extra" in message
    assert "misshapen (1): weight (4, 3) instead of (3, 4)" in message
    assert "dtypes that do not fit: blocks.1.bias I64 instead of F32" in message
    assert_same(values(cell), before)


def test_long_lists_are_capped(tmp_path):
    save_weights({**random_weights(), **{f"extra.{i}": np.zeros(1) for i in range(25)}}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"unexpected \(25\): .*extra\.9, \.\.\. 15 more"):
        load_weights(Toy(), tmp_path / "x.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_truncated_file_is_named(tmp_path, kept):
    save_weights(random_weights(), tmp_path / "model", max_shard_bytes=48)
    shard = tmp_path / "model" / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:kept])
    cell = Toy()
    before = values(cell)
    with pytest.raises(ValueError, match="model-00002-of-00003.safetensors"):
        load_weights(cell, tmp_path / "model")
    assert_same(values(cell), before)


def test_missing_shards_are_named(tmp_path):
    save_weights(random_weights(), tmp_path / "model", max_shard_bytes=48)
    (tmp_path / "model" / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00003-of-00003.safetensors"):
        load_weights(Toy(), tmp_path / "model")


def test_index_and_shards_must_agree(tmp_path):
    save_weights(random_weights(), tmp_path / "model", max_shard_bytes=48)
    index = tmp_path / "model" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="ghost"):
        load_weights(Toy(), tmp_path / "model")


def test_index_does_not_reach_outside_its_folder(tmp_path):
    save_weights(random_weights(), tmp_path / "w.safetensors")
    index = tmp_path / "sub" / "model.safetensors.index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": {"weight": "../w.safetensors"}}))
    with pytest.raises(ValueError, match="outside its folder"):
        load_weights(Toy(), index)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(100), (2).to_bytes(8, "little") + b"[]"])
def test_other_formats_are_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="x.safetensors is not a safetensors file"):
        read_headers(tmp_path / "x.safetensors")


def test_float8_is_to_be_converted(tmp_path):
    """With scales and without; in newer files beside marks that look like HiF8's codes."""
    path, code = tmp_path / "x.safetensors", {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
    mark = {"dtype": "U8", "shape": [2], "data_offsets": [4, 6]}
    for header in ({"a.weight": code}, {"a.weight": code, "a.comfy_quant": mark}):
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(2 + 2 * len(header)))
        with pytest.raises(ValueError, match=r"1 weights in float8 \(a.weight\).*; convert it: python tools/convert"):
            open_headers(path)


def test_a_file_of_pytorch_is_to_be_converted(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    hint = "convert it: python tools/convert_checkpoint.py dit|vae|umt5 --source {} --target {}_converted"
    with pytest.raises(ValueError, match=re.escape(hint.format(path, tmp_path / "model"))):
        read_headers(path)
    with pytest.raises(FileNotFoundError, match=re.escape("but model.pth; " + hint.format(tmp_path, tmp_path))):
        read_headers(tmp_path)


def test_holes_and_overlaps_are_refused(tmp_path):
    header = {"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
              "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}}
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(6))
    with pytest.raises(ValueError, match="gap or overlap before b"):
        read_headers(tmp_path / "x.safetensors")


def test_ambiguous_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        load_weights(Toy(), tmp_path)
    for name in ("a", "b"):
        save_weights(random_weights(), tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="a.safetensors, b.safetensors"):
        load_weights(Toy(), tmp_path)
    (tmp_path / "b.safetensors").rename(tmp_path / ".b.123.safetensors")
    load_weights(Toy(), tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_weights(Toy(), tmp_path / "nowhere")


def test_uninitialised_parameters_load_but_do_not_save(tmp_path):
    expected = random_weights()
    save_weights(expected, tmp_path / "x.safetensors")
    with mindspore.nn.utils.no_init_parameters():
        cell = Toy()
    with pytest.raises(ValueError, match=r"never initialised: .*blocks\.0\.weight"):
        save_weights(cell, tmp_path / "y.safetensors")
    load_weights(cell, tmp_path / "x.safetensors")
    assert_same(values(cell), expected)


def test_existing_targets(tmp_path):
    weights = random_weights()
    for target in (tmp_path / "w.safetensors", tmp_path / "folder"):
        save_weights(weights, target)
        with pytest.raises(FileExistsError, match=target.name):
            save_weights(weights, target)
        save_weights(random_weights(1), target, max_shard_bytes=48, overwrite=True)
        cell = Toy()
        load_weights(cell, target)
        assert_same(values(cell), random_weights(1))


def test_a_folder_with_other_things_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="thesis.tex"):
        save_weights(random_weights(), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_wrong_dtype_to_save(tmp_path):
    with pytest.raises(ValueError, match="int8; valid: float32, float16, bfloat16"):
        save_weights(random_weights(), tmp_path / "x.safetensors", dtype="int8")


def test_shards_respect_the_limit():
    tensors = {name: ArrayTensor(np.zeros(size, np.uint8)) for name, size in zip("abcdef", (4, 4, 3, 9, 1, 7),
                                                                                 strict=True)}
    assert plan_shards(tensors, 8) == [["a", "b"], ["c"], ["d"], ["e", "f"]]
