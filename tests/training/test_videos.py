"""Training straight from video files: the clips of a cache that holds videos go through the VAE step by step."""

import threading

import numpy as np
import pytest
from safetensors.numpy import save_file

from ospnext_ms.data import cache
from ospnext_ms.generation import coders
from ospnext_ms.parallel.mesh import Mesh
from ospnext_ms.reporting.metrics import read_metrics
from ospnext_ms.runtime import start
from ospnext_ms.training.loop import Trainer
from tests.support import train_runs as runs
from tests.support.videos import numbers, write_counting


class QuickClipEncoder:
    """Stands in for the VAE (see tests/preparation/test_prepare.py for the real one): the clip's first frame."""

    threads = set()

    def __init__(self, section, runtime):
        self.checkpoint = section.checkpoint

    def __call__(self, frames):
        self.threads.add(threading.current_thread())
        return np.full((16, 2, frames.shape[1] // 8, frames.shape[2] // 8), numbers(frames)[0] / 8, np.float32)


@pytest.fixture
def values(tmp_path, monkeypatch):
    """Settings of two steps on two videos of 9 frames, of which a clip takes 5."""
    monkeypatch.setattr(coders, "ClipEncoder", QuickClipEncoder)
    folder, names = tmp_path / "data", ["a.mp4", "b.mp4"]
    for name in names:
        write_counting(tmp_path / name, count=9, fps=8, height=32, width=32)
    records = [{"name": name, "path": name, "part": [0.0, 9 / 8], "fps": 8.0} for name in names]
    cache.write_clips(folder / cache.clips_shard(0), {}, records, [])
    texts = [np.full((3, runs.DIT["text_dim"]), i, np.float32) for i in range(2)]
    cache.write_texts(folder / cache.text_shard(0), names, texts)
    cache.write_texts(folder / cache.EMPTY_TEXT, [""], texts[:1])
    samples = [cache.Sample(name, 0, 0, (i,)) for i, name in enumerate(names)]
    cache.write_index(folder, contents="videos", fps=8, buckets=[(32, 32, 5)], text_len=5,
                      text_dim=runs.DIT["text_dim"], samples=samples, video_root=str(tmp_path))
    values = runs.settings(tmp_path / "run", folder, steps=2, every=2)
    values["context"]["mode"] = "pynative"
    values["model"]["dit"]["num_layers"] = 1
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "vae.safetensors")
    values["model"]["vae"] = {"dim": 4, "checkpoint": str(tmp_path / "vae.safetensors")}
    values["eval_dataset"] = {"path": str(runs.write_cache(tmp_path / "latents", size=(5, 32, 32))), "clips": 1,
                              "sigmas": 1}
    return values


def trainer(tmp_path, values):
    config = runs.read_config(tmp_path / "config.yaml", values)
    return Trainer(config, start(config.context), Mesh.single())


def test_steps_on_clips_of_the_videos(tmp_path, values):
    run = trainer(tmp_path, values)
    run.run()
    assert [record["step"] for record in read_metrics(tmp_path / "run") if "loss" in record] == [1, 2]
    starts = {float(latent[0, 0, 0, 0]) * 8 for step in range(6) for x0, *_ in run.inputs(step) for latent in x0}
    # Clips of 5 of 9 frames begin at one of 5, anew in every epoch.
    assert starts <= {0, 1, 2, 3, 4}
    assert len(starts) >= 3
    # The device belongs to the thread that trains.
    assert QuickClipEncoder.threads == {threading.main_thread()}


def test_the_vae_is_needed_for_videos_and_only_for_them(tmp_path, values):
    vae = values["model"].pop("vae")
    with pytest.raises(ValueError, match="holds videos, so training needs the VAE"):
        trainer(tmp_path, values)
    values["model"]["vae"] = vae
    values["train_dataset"]["path"] = values["eval_dataset"]["path"]
    with pytest.raises(ValueError, match="holds latents; there is nothing to encode"):
        trainer(tmp_path, values)
