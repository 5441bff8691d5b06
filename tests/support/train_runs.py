"""A network of some thousand weights and a cache of random latents: runs that take seconds."""

import signal
from pathlib import Path

import numpy as np

from ospnext_ms.config.train import TrainConfig
from ospnext_ms.data import cache
from tests.support import configs

DIT = dict(dim=16, ffn_dim=24, num_heads=4, num_layers=2, freq_dim=8, text_dim=8, text_len=6, skiparse="dual_end",
           sparse_ratio=2, num_full_blocks=0)
LATENT = (16, 2, 8, 8)


def write_cache(folder, count=12, size=(5, 64, 64), seed=0, text_dim=DIT["text_dim"]):
    """A finished cache of `count` random clips of `size` (frames, height, width), in the form of `prepare-data`."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    frames, height, width = size
    shape = (16, (frames - 1) // 4 + 1, height // 8, width // 8)
    names = [f"clip{i}" for i in range(count)]
    latents = {name: rng.standard_normal(shape, np.float32) for name in names}
    cache.write_clips(folder / cache.clips_shard(0), latents, [{"name": name} for name in names], [])
    texts = [rng.standard_normal((3 + i % 3, text_dim), np.float32) for i in range(count)]
    cache.write_texts(folder / cache.text_shard(0), [f"text {i}" for i in range(count)], texts)
    cache.write_texts(folder / cache.EMPTY_TEXT, [""], [rng.standard_normal((1, text_dim), np.float32)])
    samples = [cache.Sample(name, 0, 0, (i,)) for i, name in enumerate(names)]
    cache.write_index(folder, contents="latents", fps=8, buckets=[(height, width, frames)], text_len=5,
                      text_dim=text_dim, samples=samples)
    return folder


def settings(folder, data, steps=6, every=3):
    """A TrainConfig as nested dicts; the run's folder is `folder`."""
    return {
        "run_mode": "train", "seed": 3, "output_dir": str(folder), "load_checkpoint": None,
        "context": {"device_target": "CPU"},
        "model": {"dit": dict(DIT)},
        "runner_config": {"steps": steps, "batch_size": 2, "peak_tflops": 0.1},
        "optimizer": {"type": "AdamW", "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.01},
        "lr_schedule": {"type": "CosineWithWarmUpLR", "learning_rate": 1e-3, "lr_end": 1e-5, "warmup_steps": 1},
        "flow": {"shift": 3.0},
        "ema": {"decay": 0.9},
        "train_dataset": {"kind": "cache", "path": str(data), "text_drop": 0.3},
        "callbacks": {"save_checkpoint_steps": every, "trackers": []},
    }


def read_config(path, values, *overrides):
    """TrainConfig of nested dicts, through a YAML file."""
    return configs.read_config(TrainConfig, path, values, *overrides)


def write_base(path, **changes):
    """File with random weights of a network of DIT with `changes`."""
    import mindspore as ms

    from ospnext_ms.models.dit import DiTConfig, OSPNextDiT
    from ospnext_ms.storage.weights import save_weights

    ms.set_seed(2)
    save_weights(OSPNextDiT(DiTConfig(**{**DIT, **changes})), path)
    return path


def adapter_settings(folder, data, base, **options):
    """As `settings`, of adapters beside the one block of `base` (see write_base), uncompiled; `data` None: noise."""
    values = settings(folder, data, **options)
    values |= {"load_checkpoint": str(base), "lora": {"rank": 2, "alpha": 4.0, "targets": ["q", "o", "ffn.0"]}}
    values["context"]["mode"] = "pynative"
    values["model"]["dit"]["num_layers"] = 1
    values["lr_schedule"]["learning_rate"] = 1e-2
    if data is None:
        values["train_dataset"] = {"kind": "random", "latent_size": [1, 8, 8]}
    return values


def ask_for_an_end(run, step):
    """Makes a trainer's step `step`, from 1, one in which SIGTERM has come."""
    plain = run.train_step

    def train(inputs):
        run.interruption.asked = signal.SIGTERM if run.steps_done == step - 1 else 0
        return plain(inputs)

    run.train_step = train
