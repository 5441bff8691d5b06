"""A text-to-video model of some thousand weights, prompts and rewards that take no time: post-training in seconds."""

from pathlib import Path

import numpy as np

from ospnext_ms.config.post_train import PostTrainConfig
from tests.support import configs
from tests.support.text_to_video import model_section, text_encoder_of, write_weights

DIT = {"dim": 16, "ffn_dim": 24, "num_heads": 2, "num_layers": 2, "freq_dim": 8, "text_dim": 16, "text_len": 6,
       "skiparse": "dual_end", "num_full_blocks": 0}
TEXT_ENCODER = text_encoder_of(DIT)
PROMPTS = ["a 3 moving left", "a 5 moving up", "a 0 moving right"]
LATENT = (16, 1, 4, 4)


def write_model(folder):
    """dit, vae and text_encoder.safetensors with random weights, and files of prompts."""
    write_weights(folder, DIT, TEXT_ENCODER)
    (Path(folder) / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (Path(folder) / "held_out.txt").write_text("a 7 moving down\na 2 moving left\n")
    return Path(folder)


def settings(model, output, **changes):
    """A PostTrainConfig as nested dicts; `changes` are sections' changed values."""
    values = {
        "run_mode": "post_train", "seed": 3, "output_dir": str(output),
        "context": {"device_target": "CPU", "mode": "graph"},
        "model": model_section(model, DIT, TEXT_ENCODER),
        "video": {"height": 32, "width": 32, "frames": 1, "fps": 8},
        "sampling": {"steps": 4, "shift": 3.0, "guidance": 2.0, "negative_prompt": "grey"},
        "rollout": {"prompts": 2, "group_size": 4, "batch_size": 4, "noise": "osp",
                    "window": {"strategy": "progressive", "size": 2, "every": 1}},
        "lora": {"rank": 2, "alpha": 4, "targets": ["q", "v"]},
        "policy": {"clip": 0.05, "kl_weight": 0.01, "inner_epochs": 2, "micro_batch_size": 4},
        "optimizer": {"type": "AdamW", "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 1e-3},
        "lr_schedule": {"type": "ConstantWarmUpLR", "learning_rate": 1e-2, "warmup_steps": 0},
        "ema": {"decay": 0.5},
        "rewards": [{"name": "level", "callable": "tests.post_training.scorers:Brightness", "weight": 1.0,
                     "arguments": {}}],
        "prompt_file": str(model / "prompts.txt"),
        "evaluation": {"prompt_file": str(model / "held_out.txt"), "count": 2, "seed": 1, "videos": 1},
        "runner_config": {"iterations": 2},
        "callbacks": {"save_checkpoint_steps": 1, "trackers": []},
    }
    return configs.changed(values, **changes)


def read_config(path, values):
    """PostTrainConfig of nested dicts, through a YAML file."""
    return configs.read_config(PostTrainConfig, path, values)


def noise(shape, seed):
    """Normal fp32 array."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
