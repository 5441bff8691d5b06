"""`generate` with an adapter beside the weights makes what the merged weights make, and says what is wrong with one."""

import shutil

import mindspore as ms
import numpy as np
import pytest

from ospnext_ms.build import build_dit
from ospnext_ms.config.reader import ConfigError
from ospnext_ms.generation.checks import check_adapters
from ospnext_ms.generation.identity import contents_of
from ospnext_ms.generation.jobs import plain_jobs
from ospnext_ms.generation.run import generate
from ospnext_ms.generation.text_to_video import TextToVideo
from ospnext_ms.models.dit import DiTConfig, OSPNextDiT
from ospnext_ms.models.lora import Adapters, LoRAConfig
from ospnext_ms.runtime import Runtime
from ospnext_ms.storage.adapters import StoredAdapter
from ospnext_ms.storage.peft_format import read_adapter, write_adapter, write_stored_adapter
from ospnext_ms.storage.weights import load_weights
from tests.support.compare import relative_error
from tests.support.generate_runs import DIT
from tools.conversion.lora import merge_lora

RUNTIME = Runtime("CPU", ms.float32, False)
LORA = LoRAConfig(rank=2, alpha=8.0, targets=("q", "o"))


@pytest.fixture(scope="module")
def adapter(model_files, tmp_path_factory):
    """(adapter folder, checkpoint with the adapter merged)."""
    folder = tmp_path_factory.mktemp("adapter")
    net = OSPNextDiT(DiTConfig(**DIT))
    load_weights(net, model_files / "dit.safetensors")
    adapters = Adapters(net, LORA)
    rng = np.random.default_rng(0)
    arrays = {name: (a, 0.2 * rng.standard_normal(b.shape, dtype=np.float32))
              for name, (a, b) in adapters.arrays().items()}
    adapters.load(arrays)
    write_adapter(folder / "adapter", LORA, arrays)
    merge_lora(folder / "adapter", model_files / "dit.safetensors", folder / "merged.safetensors")
    return folder / "adapter", folder / "merged.safetensors"


def latents(config):
    pipeline = TextToVideo(config, RUNTIME, plain_jobs(config.sampling, ["a 3 moving left"]))
    return next(pipeline.latents())[1]


def test_unmerged_merged_and_plain(configure, adapter):
    folder, merged = adapter
    config = configure()
    plain = latents(config)
    unmerged = latents(configure(adapter=str(folder)))
    other = configure(adapter=None, model={"dit": DIT | {"checkpoint": str(merged)}})
    assert relative_error(unmerged, latents(other)) < 1e-5
    assert relative_error(unmerged, plain) > 1e-3


def test_several_adapters_with_strengths(configure, adapter, model_files, tmp_path):
    """Of other ranks, on some layers of some blocks, with differences of weights: as if merged one after the other."""
    rng = np.random.default_rng(1)
    parts = {"blocks.1.ffn.0": (DIT["ffn_dim"], DIT["dim"]), "blocks.1.self_attn.q": (DIT["dim"],) * 2,
             "time_projection.1": (6 * DIT["dim"], DIT["dim"])}
    pairs = {layer: (rng.standard_normal((3, size[1]), np.float32), 0.1 * rng.standard_normal((size[0], 3), np.float32))
             for layer, size in parts.items()}
    pairs["patch_embedding"] = (rng.standard_normal((1, 16, 1, 2, 2), np.float32),
                                0.1 * rng.standard_normal((DIT["dim"], 1, 1, 1, 1), np.float32))
    differences = {"blocks.0.modulation": rng.standard_normal((1, 6, DIT["dim"]), np.float32),
                   "blocks.1.norm3.weight": rng.standard_normal(DIT["dim"], np.float32)}
    scalings = dict(zip(pairs, (1.0, 0.5, 2.0, 1.0), strict=True))
    whole = StoredAdapter(pairs, scalings, differences)
    write_stored_adapter(tmp_path / "other", whole)
    half = StoredAdapter(pairs, {layer: 0.5 * factor for layer, factor in scalings.items()},
                         {name: 0.5 * array for name, array in differences.items()})
    write_stored_adapter(tmp_path / "half", half)
    merge_lora(tmp_path / "half", adapter[1], tmp_path / "merged.safetensors")
    both = [{"path": str(adapter[0])}, {"path": str(tmp_path / "other"), "strength": 0.5}]
    unmerged = latents(configure(adapters=both))
    one = latents(configure(adapters=both[:1]))
    merged = latents(configure(adapters=[], model={"dit": DIT | {"checkpoint": str(tmp_path / "merged.safetensors")}}))
    assert relative_error(unmerged, merged) < 1e-5
    assert relative_error(unmerged, one) > 1e-3


def test_what_is_configured(configure, adapter):
    assert configure().used_adapters == []
    assert configure(adapters=[{"path": "a", "strength": -0.5}, {"path": "b"}]).used_adapters == [
        ("a", -0.5), ("b", 1.0)]
    assert configure(adapter="a", adapters=[]).used_adapters == [("a", 1.0)]
    with pytest.raises(ConfigError, match="give adapter or adapters, not both"):
        configure(adapter="a", adapters=[{"path": "b"}])


def test_a_folder_of_videos_knows_adapters_by_contents_and_strength(configure, adapter, tmp_path):
    shutil.copytree(adapter[0], tmp_path / "elsewhere")
    told = [contents_of(configure(adapters=[{"path": str(path), "strength": strength}]))["contents of adapters"]
            for path, strength in ((adapter[0], 1), (tmp_path / "elsewhere", 1), (adapter[0], 0.5))]
    assert told[0] == told[1] != told[2]
    assert told[0] == contents_of(configure(adapter=str(adapter[0]), adapters=[]))["contents of adapters"]
    assert contents_of(configure(adapter=None))["contents of adapters"] is None


@pytest.mark.parametrize(("layer", "shape", "message"), [
    ("blocks.7.self_attn.q", None, r"does not fit the network \(1 layers\): blocks.7.self_attn.q is no linear layer"),
    ("blocks.0.self_attn.q", (5, 6), r"blocks.0.self_attn.q is \[\d+, \d+\] for A \(2, 6\) and B \(5, 2\)"),
])
def test_adapters_of_another_network(configure, tmp_path, layer, shape, message):
    out_channels, in_channels = shape or (DIT["dim"], DIT["dim"])
    pair = np.zeros((2, in_channels), np.float32), np.zeros((out_channels, 2), np.float32)
    write_stored_adapter(tmp_path / "a", StoredAdapter({layer: pair}, {layer: 1.0}))
    with pytest.raises(ValueError, match=message):
        build_dit(configure().model.dit, RUNTIME, adapters=[(tmp_path / "a", 1.0)])


def test_a_difference_of_another_network(configure, tmp_path):
    write_stored_adapter(tmp_path / "a", StoredAdapter({}, {}, {"blocks.0.modulation": np.zeros(3, np.float32)}))
    with pytest.raises(ValueError, match=r"adapter does not fit .*blocks.0.modulation has \(1, 6, \d+\) for \(3,\)"):
        build_dit(configure().model.dit, RUNTIME, adapters=[(tmp_path / "a", 1.0)])


def test_adapters_in_other_forms_are_answered_with_the_command_that_converts_them(configure, adapter, tmp_path):
    hint = "convert it: python tools/convert_checkpoint.py lora --source {} --target {}_converted"
    file = tmp_path / "l.safetensors"
    shutil.copy(adapter[0] / "adapter_model.safetensors", file)
    with pytest.raises(ValueError, match=r"^adapters\[0\]: ") as error:
        check_adapters(configure(adapters=[{"path": str(file)}]))
    assert hint.format(file, file.with_suffix("")) in str(error.value)
    (tmp_path / "authors").mkdir()
    (tmp_path / "authors" / "adapter_model.bin").write_bytes(b"")
    (tmp_path / "authors" / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="^adapter: ") as error:
        check_adapters(configure(adapter=str(tmp_path / "authors"), adapters=[]))
    assert hint.format(tmp_path / "authors", tmp_path / "authors") in str(error.value)


def test_a_missing_adapter_is_found_before_anything_is_written(configure, tmp_path):
    config = configure(adapter=str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"adapter: no adapter in .*nothing: adapter_config.json is missing"):
        generate(config)
    assert not (tmp_path / "output").exists()


def test_what_is_written_is_read(adapter):
    config, arrays = read_adapter(adapter[0])
    assert (config.rank, config.alpha, set(config.targets)) == (2, 8.0, {"q", "o"})
    assert len(arrays) == 2 * 2 * DIT["num_layers"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"use_dora": True}, "use_dora True"),
    ({"bias": "all"}, "bias 'all'"),
    ({"peft_type": "IA3"}, "peft_type 'IA3'"),
    ({"modules_to_save": ["head"]}, "modules_to_save .*merge_and_unload"),
    ({"r": 3}, "the rank is 3"), ({"lora_alpha": "x"}, "must be numbers above 0"),
    ({"target_modules": 3}, "target_modules must be a pattern or a list of names, not 3"),
    ({"target_modules": ["q", None]}, "must be a pattern or a list of names"),
])
def test_adapters_that_are_not_supported(adapter, configure, tmp_path, changes, message):
    import json

    folder = tmp_path / "changed"
    shutil.copytree(adapter[0], folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        check_adapters(configure(adapter=str(folder)))
