"""The shipped HiF8 configurations are the plain ones in 8 bits."""

from dataclasses import replace

import mindspore as ms
import pytest

from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import load_config
from ospnext_ms.config.train import TrainConfig
from ospnext_ms.models.config import QuantConfig
from ospnext_ms.quant.recipe import describe
from ospnext_ms.runtime import Runtime
from tests.support.paths import CONFIGS


def load(kind, name, *overrides):
    if kind == "train":
        return load_config(TrainConfig, CONFIGS / "train" / f"{name}.yaml", overrides)
    return load_config(GenerateConfig, CONFIGS / "generate" / f"{name}.yaml", overrides, {"prompts.prompt": "a 7"})


@pytest.mark.parametrize("kind", ["train", "generate"])
@pytest.mark.parametrize("size", ["tiny", "1_3b", "14b"])
def test_everything_else_is_as_in_the_plain_file(kind, size):
    plain, hif8 = load(kind, size), load(kind, f"{size}_hif8")
    assert (hif8.model.dit.quant, hif8.model.dit.quant_attention) == ("hif8", "hif8")
    assert hif8.output_dir == plain.output_dir + "_hif8"
    dit = replace(hif8.model.dit, quant=None, quant_attention=None, quant_config=QuantConfig())
    assert replace(hif8, model=replace(hif8.model, dit=dit), output_dir=plain.output_dir) == plain


def test_keys_are_checked():
    with pytest.raises(ValueError, match="model.dit.quant_config.scope: unknown key"):
        load("train", "tiny_hif8", "model.dit.quant_config.scope=global")
    with pytest.raises(ValueError, match="scale_scope"):
        load("train", "tiny_hif8", "model.dit.quant_config.scale_scope=data")
    with pytest.raises(ValueError, match="neither dit.quant nor dit.quant_attention"):
        load("train", "tiny", "model.dit.quant_config.scale_scope=global")


def test_a_run_says_what_computes():
    dit = load("train", "tiny_hif8").model.dit
    runtime = Runtime("CPU", ms.float32, True)
    expected = "HiF8 emulated: the device is CPU, which has no HiF8; quantised: linears and attention"
    assert describe(dit, runtime) == expected
    assert describe(load("train", "tiny").model.dit, runtime) == ""
    native = replace(dit, quant_config=QuantConfig(backend="native"))
    with pytest.raises(ValueError, match="'native' does not exist here"):
        describe(native, runtime)
