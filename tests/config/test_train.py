"""The files in yaml_configs/train can be read, fit the released networks, and name degrees that are valid."""

import pytest
import yaml
from mindspore.nn.utils import no_init_parameters

from ospnext_ms.__main__ import main
from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import ConfigError, load_config
from ospnext_ms.config.train import TrainConfig
from ospnext_ms.models.dit import OSPNextDiT
from ospnext_ms.parallel.degrees import check_parallel
from tests.support.paths import ROOT

CONFIGS = ROOT / "yaml_configs"
NAMES = ("tiny", "1_3b", "14b")


def shipped(name, *overrides):
    return load_config(TrainConfig, CONFIGS / "train" / f"{name}.yaml", overrides)


@pytest.mark.parametrize("name", [*NAMES, *(f"{name}_lora" for name in NAMES)])
def test_the_network_is_the_one_that_generates(name):
    served = load_config(GenerateConfig, CONFIGS / "generate" / f"{name.removesuffix('_lora')}.yaml", (),
                         {"prompts.prompt": "a cat"})
    shapes = []
    for section in (shipped(name).model.dit, served.model.dit):
        with no_init_parameters():
            shapes.append({key: parameter.shape for key, parameter in OSPNextDiT(section).parameters_and_names()})
    assert shapes[0] == shapes[1]
    assert shipped(name).model.dit.block_patterns == served.model.dit.block_patterns


@pytest.mark.parametrize(("name", "degrees"), [("14b", (4, 2)), ("1_3b", (4, 1))])
@pytest.mark.parametrize("size", [8, 64])
def test_large_models_share_a_video_as_designed(name, degrees, size):
    config = shipped(name)
    parallel = config.parallel_config
    assert (parallel.skiparse_parallel, parallel.ulysses_parallel) == degrees
    check_parallel(parallel, config.model.dit, size)


def test_degrees_that_do_not_divide_the_heads_are_refused_with_the_valid_ones(monkeypatch, capsys):
    monkeypatch.setenv("MS_WORKER_NUM", "8")
    arguments = ["train", "--config", str(CONFIGS / "train" / "1_3b.yaml")]
    assert main([*arguments, "--set", "parallel_config.ulysses_parallel=2"]) == 2
    message = capsys.readouterr().err
    assert "4x2" in message
    assert "4x3" in message


def test_a_number_of_processes_that_does_not_fit_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("MS_WORKER_NUM", "6")
    assert main(["train", "--config", str(CONFIGS / "train" / "14b.yaml")]) == 2
    assert "6 processes run" in capsys.readouterr().err


@pytest.mark.parametrize(("override", "words"), [
    ("optimizer.betas=[0.9]", "optimizer.betas: the list .* has 1 entries; it must have 2"),
    ("optimizer.betas=[0.9, 1]", "betas is"),
    ("flow.shift=fast", "dynamic"),
    ("lr_schedule.type=ConstantWarmUpLR", "does not use"),
    ("lr_schedule.warmup_steps=400", "below runner_config.steps"),
    ("train_dataset.kind=random", "leave it out"),
    ("train_dataset.path=null", "path is missing"),
    ("load_checkpoint=null", "finetune needs weights"),
    ("runner_config.stepz=3", "did you mean steps"),
    ("eval_dataset.sigmas=0", "at least 1"),
    ("train_dataset.text_drop=2.0", "from 0 to 1"),
])
def test_what_cannot_be_run_is_named(override, words):
    with pytest.raises(ConfigError, match=words):
        shipped("tiny", override)


@pytest.mark.parametrize(("override", "words"), [
    ("load_checkpoint=null", "load_checkpoint is null; run_mode finetune needs weights"),
    ("lora.rank=0", "lora.rank is 0; it must be at least 1"),
    ("lora.targets=[]", "it must be a list of layer names"),
    ("lora.alfa=3", "did you mean alpha"),
])
def test_adapters_that_cannot_be_trained(override, words):
    with pytest.raises(ConfigError, match=words):
        shipped("tiny_lora", override)


def test_adapters_need_a_network_to_be_used_beside():
    with pytest.raises(ConfigError, match=r"load_checkpoint is null; adapters \(lora\) need the weights"):
        shipped("tiny_lora", "load_checkpoint=null", "run_mode=train")


def test_a_missing_cache_and_missing_weights_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    arguments = ["train", "--config", str(CONFIGS / "train" / "tiny.yaml"), "--set", f"output_dir={tmp_path}"]
    assert main([*arguments, "--set", "train_dataset.path=nowhere"]) == 2
    assert "cache nowhere does not exist" in capsys.readouterr().err
    random = ["--set", "train_dataset={kind: random, latent_size: [1, 4, 4]}", "--set", "eval_dataset=null",
              "--set", "load_checkpoint=nowhere.ckpt"]
    assert main([*arguments, *random]) == 2
    assert "nowhere.ckpt" in capsys.readouterr().err


def test_section_names_are_those_of_mindformers():
    content = yaml.safe_load((CONFIGS / "train" / "tiny.yaml").read_text())
    assert {"run_mode", "context", "parallel_config", "model", "runner_config", "optimizer", "lr_schedule",
            "train_dataset", "recompute_config", "callbacks", "load_checkpoint", "output_dir"} <= content.keys()
