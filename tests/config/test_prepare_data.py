"""The files in yaml_configs/prepare_data can be read and fit the files of the other commands."""

from dataclasses import asdict
from pathlib import Path

import pytest

from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.prepare_data import PrepareDataConfig
from ospnext_ms.config.reader import load_config
from ospnext_ms.config.train import TrainConfig
from tests.support.paths import CONFIGS


def load(name):
    return load_config(PrepareDataConfig, CONFIGS / "prepare_data" / f"{name}.yaml")


@pytest.mark.parametrize(("name", "model"), [("tiny", "tiny"), ("480p", "1_3b"), ("720p", "14b")])
def test_the_networks_are_those_of_generate(name, model):
    prepare = load(name)
    generate = load_config(GenerateConfig, CONFIGS / "generate" / f"{model}.yaml", (), {"prompts.prompt": "a cat"})
    # Encoding has the device to itself: it needs no tiles where decoding beside the transformer does.
    whole = {"tile_size": None, "tile_overlap": None}
    assert asdict(prepare.model.vae) == asdict(generate.model.vae) | (whole if name == "720p" else {})
    assert asdict(prepare.model.text_encoder) == asdict(generate.model.text_encoder)
    assert prepare.model.text_len == generate.model.dit.text_len
    video = generate.video
    assert prepare.clips.buckets[0] == (video.height, video.width, video.frames)
    assert prepare.clips.fps == video.fps


@pytest.mark.parametrize(("name", "model"), [("tiny", "tiny"), ("480p", "1_3b"), ("720p", "14b")])
def test_training_reads_what_is_written(name, model):
    train = load_config(TrainConfig, CONFIGS / "train" / f"{model}.yaml")
    assert Path(load(name).output_dir) == Path(train.train_dataset.path)


def test_every_file_is_looked_at_here():
    assert sorted(path.stem for path in (CONFIGS / "prepare_data").iterdir()) == ["480p", "720p", "tiny"]
