"""Nested state dictionaries, prefixes and wrappers: one set of weights is found, of several one is asked for."""

import pytest

from tests.support.checkpoints import random_state, state_bytes, stored_bytes, write_source
from tools.conversion.convert import convert
from tools.conversion.state_dicts import split_name
from tools.convert_checkpoint import main

torch = pytest.importorskip("torch")


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def other_state():
    return {name: torch.zeros_like(tensor) for name, tensor in random_state("vae").items()}


@pytest.mark.parametrize("nest", [
    lambda state: {"ema": state}, lambda state: {"ema_state_dict": state, "step": 3},
    lambda state: {"generator": prefixed(state, "model.")}, lambda state: {"model": {"module": state}, "epoch": 1},
    lambda state: {"state_dict": state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}},
])
def test_the_only_set_of_weights_is_found_and_the_rest_is_said(tmp_path, nest):
    content = nest(random_state("vae"))
    torch.save(content, tmp_path / "w.pth")
    summary = convert("vae", tmp_path / "w.pth", tmp_path / "ms")
    assert stored_bytes(tmp_path / "ms") == state_bytes(random_state("vae"))
    others = [name for names in summary.dropped.values() for name in names]
    assert [name.split(".")[0] for name in others] == [key for key in content if key not in ("ema_state_dict", "ema",
                                                       "generator", "model", "state_dict")]


def test_of_several_one_is_chosen(tmp_path, capsys):
    torch.save({"generator": other_state(), "ema": random_state("vae")}, tmp_path / "w.pth")
    command = ["vae", "--source", str(tmp_path / "w.pth"), "--target", str(tmp_path / "ms")]
    assert main(command) == 1
    assert "choose one with --key: generator (194 tensors), ema (194 tensors)" in capsys.readouterr().err
    assert main([*command, "--key", "critic"]) == 1
    assert "--key is 'critic'; " in capsys.readouterr().err
    assert not (tmp_path / "ms").exists()
    assert main([*command, "--key", "ema"]) == 0
    assert "left out, not chosen by --key ema (1): generator" in capsys.readouterr().out
    assert stored_bytes(tmp_path / "ms") == state_bytes(random_state("vae"))


@pytest.mark.parametrize("kind", ["dit", "vae", "umt5"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.diffusion_model.", "model.", "module._orig_mod.",
                                    "generator.model._fsdp_wrapped_module."])
def test_prefixes(tmp_path, kind, prefix):
    source = write_source(tmp_path / "w.safetensors", prefixed(random_state(kind), prefix))
    convert(kind, source, tmp_path / "ms")
    assert stored_bytes(tmp_path / "ms") == state_bytes(random_state(kind))


def test_a_file_with_all_networks(tmp_path):
    state = prefixed(random_state("dit"), "model.diffusion_model.") | prefixed(random_state("vae"), "vae.")
    source = write_source(tmp_path / "w.safetensors", state)
    with pytest.raises(ValueError, match=r"--key: model.diffusion_model \(69 tensors\), vae \(194 tensors\)"):
        convert("dit", source, tmp_path / "ms")
    for kind, key in (("dit", "model.diffusion_model"), ("vae", "vae")):
        convert(kind, source, tmp_path / kind, key=key)
        assert stored_bytes(tmp_path / kind) == state_bytes(random_state(kind))


def test_a_transformer_with_an_adapter_beside_it(tmp_path):
    state = {}
    for name, tensor in random_state("dit").items():
        layer, _, part = name.rpartition(".")
        state[f"base_model.model.{layer}.base_layer.{part}" if layer.endswith("attn.q")
              else f"base_model.model.{name}"] = tensor
    lora = {f"base_model.model.blocks.0.self_attn.q.lora_{part}.default.weight": torch.zeros(2, 2) for part in "AB"}
    torch.save(state | lora, tmp_path / "w.pth")
    summary = convert("dit", tmp_path / "w.pth", tmp_path / "ms")
    assert stored_bytes(tmp_path / "ms") == state_bytes(random_state("dit"))
    assert summary.dropped == {"an adapter, which `lora --source` reads": [
        f"blocks.0.self_attn.q.lora_{part}.default.weight" for part in "AB"]}


def test_an_adapter_is_no_network(tmp_path):
    state = {f"base_model.model.blocks.0.self_attn.q.lora_{part}.weight": torch.zeros(2, 2) for part in "AB"}
    with pytest.raises(ValueError, match="holds no weights of a network .an adapter is converted with lora"):
        convert("dit", write_source(tmp_path / "w.safetensors", state), tmp_path / "ms")


@pytest.mark.parametrize(("name", "split"), [
    ("blocks.0._orig_mod.self_attn.q.weight", ("", "blocks.0.self_attn.q.weight")),
    ("model.model.head.head.bias", ("model.model.", "head.head.bias")),
    ("encoder.conv1.weight", ("", "encoder.conv1.weight")),
])
def test_wrappers_stand_anywhere(name, split):
    assert split_name(name) == split


def test_a_name_with_and_without_wrapper(tmp_path):
    state = random_state("vae")
    source = write_source(tmp_path / "w.safetensors", state | {"module.conv1.bias": state["conv1.bias"].clone()})
    with pytest.raises(ValueError, match="conv1.bias is there twice"):
        convert("vae", source, tmp_path / "ms")
