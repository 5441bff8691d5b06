"""The files in yaml_configs/generate describe networks whose checkpoints exist."""

import json

import pytest
from mindspore.nn.utils import no_init_parameters

from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import load_config
from ospnext_ms.generation.checks import check_files
from ospnext_ms.generation.jobs import plain_jobs
from ospnext_ms.generation.text_to_video import TextToVideo
from ospnext_ms.models.dit import OSPNextDiT
from ospnext_ms.models.umt5 import UMT5Encoder
from ospnext_ms.models.vae import WanVAE
from ospnext_ms.runtime import start
from ospnext_ms.storage.weights import mismatch_report
from tests.support.paths import ROOT

FACTS = ROOT / "tests" / "facts"
TINY_WEIGHTS = ROOT / "tools" / "tiny_family" / "weights"


def shipped(name, *overrides):
    return load_config(GenerateConfig, ROOT / "yaml_configs" / "generate" / f"{name}.yaml", overrides,
                       {"prompts.prompt": "a cat"})


@pytest.mark.parametrize(("name", "network", "cell", "facts"), [
    ("1_3b", "dit", OSPNextDiT, "dit_1_3b"), ("14b", "dit", OSPNextDiT, "dit_14b"),
    ("1_3b", "vae", WanVAE, "wan_vae"), ("14b", "vae", WanVAE, "wan_vae"),
    ("1_3b", "text_encoder", UMT5Encoder, "umt5_xxl_encoder"), ("14b", "text_encoder", UMT5Encoder, "umt5_xxl_encoder"),
])
def test_networks_have_the_released_parameters(name, network, cell, facts):
    with no_init_parameters():
        net = cell(getattr(shipped(name).model, network))
    released = json.loads((FACTS / f"{facts}_names.json").read_text())
    assert mismatch_report(released, {key: parameter.shape for key, parameter in net.parameters_and_names()}) == []


@pytest.mark.skipif(not (TINY_WEIGHTS / "dit_sparse.safetensors").is_file(), reason="the tiny model is not trained yet")
@pytest.mark.parametrize("overrides", [
    [],
    ["model.dit.skiparse=full", "model.dit.num_full_blocks=null",
     "model.dit.checkpoint=tools/tiny_family/weights/dit_full.safetensors"],
])
def test_the_tiny_model_fits_its_weights(overrides, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = shipped("tiny", *overrides)
    check_files(config)
    jobs = plain_jobs(config.sampling, ["a 3 moving left", "a"])
    assert TextToVideo(config, start(config.context), jobs).jobs == jobs
