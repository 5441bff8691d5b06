"""What may differ where a run is resumed, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ospnext_ms.config.resuming import POST_TRAIN_MAY_CHANGE, TRAIN_MAY_CHANGE
from ospnext_ms.data.cache import Cache
from ospnext_ms.models.lora_config import LoRAConfig
from ospnext_ms.parallel.mesh import Mesh
from ospnext_ms.post_training.trainer import PolicyTrainer
from ospnext_ms.runtime import start
from ospnext_ms.storage.peft_format import write_adapter
from ospnext_ms.storage.training_checkpoint import Checkpoint
from ospnext_ms.training import resume
from ospnext_ms.training.loop import Trainer
from ospnext_ms.training.resume import check_same_run, run_state
from tests.support import post_train_runs as policy_runs
from tests.support import train_runs as runs


def compare(saved, given, may_change, then=None, now=None):
    state = json.loads(json.dumps(run_state(saved, then or {})))
    check_same_run(Checkpoint(Path("out/checkpoints/step_00000003"), 3, state, {}), given, now or {}, may_change,
                   "fp32")


@pytest.mark.parametrize("override", [
    "runner_config.steps=50", "runner_config.gradient_accumulation_steps=2", "output_dir=elsewhere",
    "context.mode=pynative", "parallel_config.skiparse_parallel=4", "lr_schedule.learning_rate=0.1",
    "callbacks.save_checkpoint_steps=1", "recompute_config.recompute=true", "train_dataset.path=moved",
])
def test_these_may_differ(tmp_path, override):
    values = runs.settings("out", "data")
    saved, given = (runs.read_config(tmp_path / "c.yaml", values, *overrides) for overrides in ((), (override,)))
    assert saved != given
    compare(saved, given, TRAIN_MAY_CHANGE)


@pytest.mark.parametrize(("override", "line"), [
    ("seed=4", "seed: 3 then, 4 now"),
    ("optimizer.betas=[0.9, 0.99]", r"optimizer.betas\[1\]: 0.95 then, 0.99 now"),
    ("ema.decay=0.5", "ema.decay: 0.9 then, 0.5 now"),
    ("model.dit.num_layers=4", "model.dit.num_layers: 2 then, 4 now"),
    ("flow.shift=dynamic", 'flow.shift: 3.0 then, "dynamic" now'),
    ("train_dataset.text_drop=0", "train_dataset.text_drop: 0.3 then, 0.0 now"),
    ("model.vae={dim: 4, checkpoint: v}", "model.vae: null then, {.*} now"),
])
def test_these_are_refused_and_named(tmp_path, override, line):
    values = runs.settings("out", "data")
    saved, given = (runs.read_config(tmp_path / "c.yaml", values, *overrides) for overrides in ((), (override,)))
    with pytest.raises(ValueError, match=f"(?s)other settings:\n{line}\nSet them back .*another output_dir"):
        compare(saved, given, TRAIN_MAY_CHANGE)


def test_all_differences_are_named_and_those_beside_the_configuration_too(tmp_path):
    values = runs.settings("out", "data")
    saved, given = (runs.read_config(tmp_path / "c.yaml", values, f"seed={seed}") for seed in (1, 2))
    with pytest.raises(ValueError, match="seed: 1 then, 2 now\nsamples of a step: 4 then, 8 now\n"):
        compare(saved, given, TRAIN_MAY_CHANGE, {"samples of a step": 4}, {"samples of a step": 8})


def test_keys_that_a_checkpoint_does_not_know_have_their_defaults(tmp_path):
    config = runs.read_config(tmp_path / "c.yaml", runs.settings("out", "data"))
    state = {"configuration": dataclasses.asdict(config)}
    del state["configuration"]["clipping"], state["configuration"]["ema"]["warm_up"]
    checkpoint = Checkpoint(Path("step_00000003"), 3, state, {})
    check_same_run(checkpoint, config, {"samples of a step": 4}, TRAIN_MAY_CHANGE, "fp32")
    default = config.ema.warm_up
    other = dataclasses.replace(config, ema=dataclasses.replace(config.ema, warm_up=not default))
    with pytest.raises(ValueError, match=f"ema.warm_up: {str(default).lower()} then, {str(not default).lower()} now"):
        check_same_run(checkpoint, other, {"samples of a step": 4}, TRAIN_MAY_CHANGE, "fp32")


def test_a_residual_stream_once_saved_as_null_was_in_the_compute_dtype(tmp_path):
    config = runs.read_config(tmp_path / "c.yaml", runs.settings("out", "data"))
    state = json.loads(json.dumps(run_state(config, {})))
    state["configuration"]["model"]["dit"]["residual_dtype"] = None
    checkpoint = Checkpoint(Path("step_00000003"), 3, state, {})
    check_same_run(checkpoint, config, {}, TRAIN_MAY_CHANGE, "fp32")
    with pytest.raises(ValueError, match='model.dit.residual_dtype: "bf16" then, "fp32" now'):
        check_same_run(checkpoint, config, {}, TRAIN_MAY_CHANGE, "bf16")


def test_a_checkpoint_that_knew_tensorboard_only_is_resumed(tmp_path):
    config = runs.read_config(tmp_path / "c.yaml", runs.settings("out", "data"))
    state = json.loads(json.dumps(run_state(config, {})))
    del state["configuration"]["callbacks"]["trackers"]
    state["configuration"]["callbacks"]["tensorboard"] = True
    check_same_run(Checkpoint(Path("step_00000003"), 3, state, {}), config, {}, TRAIN_MAY_CHANGE, "fp32")


def test_rewards_may_be_given_more_time_but_not_another_weight(tmp_path):
    def config(**changes):
        values = policy_runs.settings(Path("model"), "out")
        values["rewards"][0] |= changes
        return policy_runs.read_config(tmp_path / "c.yaml", values)

    compare(config(), config(timeout_seconds=9000, retries=3), POST_TRAIN_MAY_CHANGE)
    with pytest.raises(ValueError, match=r"rewards\[0\].weight: 1.0 then, 2.0 now"):
        compare(config(), config(weight=2.0), POST_TRAIN_MAY_CHANGE)
    with pytest.raises(ValueError, match=r"rewards\[0\].arguments.level: not given then, 1 now"):
        compare(config(), config(arguments={"level": 1}), POST_TRAIN_MAY_CHANGE)


def test_a_cache_is_known_by_its_contents(tmp_path):
    first = runs.write_cache(tmp_path / "first")
    before = Cache(first).fingerprint()
    moved = first.rename(tmp_path / "moved")
    assert Cache(moved).fingerprint() == before
    assert Cache(runs.write_cache(tmp_path / "other", count=8)).fingerprint() != before
    changed = Cache(runs.write_cache(tmp_path / "changed", seed=1))
    assert [sample.name for sample in changed.samples] == [sample.name for sample in Cache(moved).samples]
    assert changed.fingerprint() != before


def test_a_trainer_refuses_another_global_batch_and_other_data(tmp_path):
    data, other = (runs.write_cache(tmp_path / name, count) for name, count in (("data", 12), ("other", 8)))
    values = runs.settings(tmp_path / "run", data)

    def trainer(*overrides):
        config = runs.read_config(tmp_path / "c.yaml", values, *overrides)
        return Trainer(config, start(config.context), Mesh.single())

    run = trainer()
    run.save()
    run.store.wait()
    trainer("runner_config.batch_size=1", "runner_config.gradient_accumulation_steps=2")
    with pytest.raises(ValueError, match=r"(?s)samples of a step on all processes \(batch_size.*\): 2 then, 4 now"
                       r".*another output_dir; with load_checkpoint .* such as .*step_00000000/parameters"):
        trainer("runner_config.batch_size=4")
    with pytest.raises(ValueError, match="contents of train_dataset.path: "):
        trainer(f"train_dataset.path={other}")


class Compared(Exception):
    """Carries what processes would compare."""


@pytest.fixture
def compared(monkeypatch):
    """Function (function that opens a run) -> {name: value} of what its processes compare."""
    def stop(group, values):
        raise Compared(values)

    monkeypatch.setattr(resume, "check_agreement", stop)

    def compared(open_run):
        with pytest.raises(Compared) as caught:
            open_run()
        return caught.value.args[0]

    return compared


def differing(first, second):
    assert first.keys() == second.keys()
    return {name for name in first if first[name] != second[name]}


def test_processes_compare_what_lies_in_the_files_that_training_reads(tmp_path, compared):
    data, held_out = (runs.write_cache(tmp_path / name, count=4) for name in ("data", "held_out"))
    weights = tmp_path / "weights.safetensors"
    save_file({"w": np.zeros(3, np.float32)}, weights)
    values = runs.settings(tmp_path / "run", data) | {"load_checkpoint": str(weights)}
    values["eval_dataset"] = {"path": str(held_out), "clips": 2, "sigmas": 1, "every": 2}
    config = runs.read_config(tmp_path / "c.yaml", values)

    def found():
        return compared(lambda: Trainer(config, start(config.context), Mesh.single()))

    before = found()
    assert {"seed", "lr_schedule", "train_dataset"} < before.keys()
    for name, change in {
        "contents of load_checkpoint": lambda: save_file({"w": np.ones(3, np.float32)}, weights),
        "contents of eval_dataset.path": lambda: runs.write_cache(shutil.rmtree(held_out) or held_out, count=4, seed=1),
        "contents of train_dataset.path": lambda: runs.write_cache(shutil.rmtree(data) or data, count=4, seed=1),
    }.items():
        change()
        after = found()
        assert differing(before, after) == {name}
        before = after


def test_processes_compare_what_lies_in_the_files_that_post_training_reads(tmp_path, compared):
    model = policy_runs.write_model(tmp_path)
    adapter = write_adapter(tmp_path / "adapter", LoRAConfig(rank=2, alpha=4.0, targets=("q",)), {})[0]
    values = policy_runs.settings(model, tmp_path / "run")
    values["lora"]["checkpoint"] = str(adapter.parent)
    config = policy_runs.read_config(tmp_path / "c.yaml", values)

    def found():
        return compared(lambda: PolicyTrainer(config, start(config.context), Mesh.single()))

    before = found()
    assert {"seed", "rewards", "contents of model.dit.checkpoint"} < before.keys()
    for name, file in {"contents of prompt_file": tmp_path / "prompts.txt", "contents of lora.checkpoint": adapter,
                       "contents of evaluation.prompt_file": tmp_path / "held_out.txt"}.items():
        file.write_text(file.read_text() + "\na 4 moving up\n")
        after = found()
        assert differing(before, after) == {name}
        before = after
