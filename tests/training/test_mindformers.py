"""The route of a user of mindformers: its registered trainer, built by mindformers and given a MindFormerConfig."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from ospnext_ms.models.config import DiTConfig
from ospnext_ms.reporting.metrics import read_metrics
from ospnext_ms.training.mindformers import register
from ospnext_ms.training.optimizer import load_mindformers
from tests.support.paths import CONFIGS, ROOT

CHANGES = {
    "load_checkpoint": None, "run_mode": "train", "eval_dataset": None,
    "train_dataset": {"kind": "random", "latent_size": [1, 8, 8]},
}


@pytest.fixture(scope="module")
def mindformers(tmp_path_factory):
    load_mindformers(tmp_path_factory.mktemp("logs"))
    register()
    from mindformers.tools.register import MindFormerConfig
    from mindformers.trainer.build_trainer import build_trainer

    return SimpleNamespace(MindFormerConfig=MindFormerConfig, build_trainer=build_trainer)


@pytest.fixture
def config(mindformers, tmp_path):
    """The tiny YAML as mindformers reads it, two steps on noise."""
    found = mindformers.MindFormerConfig(**yaml.safe_load((CONFIGS / "train" / "tiny.yaml").read_text()))
    for key, value in CHANGES.items():
        found[key] = value
    found.output_dir = str(tmp_path / "run")
    found.context.mode = "pynative"
    found.runner_config.steps, found.runner_config.batch_size = 2, 1
    found.lr_schedule.warmup_steps = 0
    found.callbacks.trackers = []
    return found


def test_its_trainer_trains_the_tiny_yaml(mindformers, config, tmp_path):
    trainer = mindformers.build_trainer({"type": "OSPNextTrainer", "model_name": "tiny"})
    paths = trainer.train(config=config)
    assert [record["step"] for record in read_metrics(tmp_path / "run") if "loss" in record] == [1, 2]
    assert tmp_path / "run" / "checkpoints" / "step_00000002" in paths


def test_a_file_read_by_mindformers_itself_is_refused_by_its_own_template(mindformers):
    """Why docs/train.md says to hand over the path, or the sections: its templates are those of language models."""
    with pytest.raises(KeyError, match="runner_config.* unexpected key: steps"):
        mindformers.MindFormerConfig(str(CONFIGS / "train" / "tiny.yaml"))


def test_the_network_is_built_from_its_configuration(mindformers):
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    cls = MindFormerRegister.get_cls(MindFormerModuleType.CONFIG, "OSPNextDiTConfig")
    assert cls is DiTConfig
    shape = cls(dim=16, ffn_dim=20, num_heads=2, num_layers=4, freq_dim=8, text_dim=4, text_len=3, num_full_blocks=0)
    net = MindFormerRegister.get_instance(MindFormerModuleType.MODELS, "OSPNextDiT", config=shape)
    assert len(net.blocks) == 4


@pytest.mark.parametrize(("arguments", "words"), [
    ({"optimizer": "adamw"}, "takes config alone, not optimizer"),
    ({"config": 3}, "config is 3; expected a YAML file"),
    ({"config": {"run_mode": "train"}}, "seed"),
])
def test_what_it_cannot_use_is_refused(mindformers, arguments, words):
    trainer = mindformers.build_trainer(class_name="OSPNextTrainer")
    with pytest.raises(ValueError, match=words):
        trainer.train(**arguments)


def test_its_import_says_nothing_and_leaves_warnings_as_they_were(tmp_path):
    code = ("import logging, sys\nfrom ospnext_ms.training.optimizer import load_mindformers\n"
            "load_mindformers(sys.argv[1])\nassert logging.getLogger('x').isEnabledFor(logging.WARNING)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, text=True, capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "GLOG_v": "3"}, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
