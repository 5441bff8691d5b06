"""What may differ between a run and the one that it goes on with, and in which keys two configurations differ.

A key stands for a whole section or a single value. Whatever is not listed here is refused where a run is resumed, with
both values; of files the contents count and not where they lie (training/resume.py and generation/identity.py compare).
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

# How long, how fast, where, and what is told. All else is part of what weights, moments, averages and position in the
# data mean. Of batches their sum over all processes counts (training/loop.py).
TRAIN_MAY_CHANGE = frozenset({
    "run_mode", "output_dir", "load_checkpoint", "resume_training", "context", "parallel_config", "runner_config",
    "lr_schedule", "eval_dataset", "recompute_config", "callbacks", "model.dit.quant_config.backend",
    "model.vae.checkpoint", "model.text_encoder", "train_dataset.path", "train_dataset.exclude", "validation",
    "lora.checkpoint",
})

# The same of post-training.
POST_TRAIN_MAY_CHANGE = frozenset({
    "output_dir", "resume_training", "context", "parallel_config", "runner_config", "lr_schedule", "evaluation",
    "validation", "recompute_config", "callbacks", "prompt_file", "rollout.batch_size", "lora.checkpoint", "video.crf",
    "model.dit.checkpoint", "model.dit.quant_config.backend", "model.vae.checkpoint", "model.text_encoder.checkpoint",
    "model.text_encoder.tokenizer", "rewards.python", "rewards.timeout_seconds", "rewards.start_timeout_seconds",
    "rewards.retries", "policy.equal_rewards_limit",
})

# Of videos in one folder. What each job brings along is compared with its record; device and dtype count as they were
# chosen, and not the wish.
GENERATE_MAY_CHANGE = frozenset({
    "output_dir", "output_naming", "prompts", "adapter", "adapters",
    "context.device_target", "context.dtype", "context.offload",
    "parallel_config.data_parallel", "parallel_config.parameter_shard",
    "sampling.seed", "sampling.negative_prompt", "sampling.starting_noise", "sampling.cache.calibration",
    "model.dit.checkpoint", "model.vae.checkpoint", "model.text_encoder.checkpoint", "model.text_encoder.tokenizer",
})

_ABSENT = "not given"


def differences(then: Mapping[str, Any], now: Mapping[str, Any], may_change: Collection[str] = ()) -> list[str]:
    """"a.b: VALUE then, VALUE now" for every key of two nested dicts whose values are not equal.

    Args:
        may_change: keys ("a.b", whole sections or single ones; those of list members without index) that need not be
            equal.
    """
    return [f"{key}: {_show(before)} then, {_show(after)} now" for key, before, after in
            _differing(then, now, may_change)]


def _differing(then: Any, now: Any, may_change: Collection[str], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if re.sub(r"\[\d+\]", "", path) in may_change:
        return
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        members = [(f"{path}.{key}" if path else key, then.get(key, _ABSENT), now.get(key, _ABSENT))
                   for key in {**then, **now}]
    elif isinstance(then, tuple) and isinstance(now, tuple) and len(then) == len(now):
        members = [(f"{path}[{i}]", *pair) for i, pair in enumerate(zip(then, now, strict=True))]
    else:
        if then != now:
            yield path, then, now
        return
    for name, before, after in members:
        yield from _differing(before, after, may_change, name)


def _show(value: Any) -> str:
    return value if value is _ABSENT else json.dumps(value, ensure_ascii=False)
