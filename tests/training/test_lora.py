"""Runs that train adapters beside a frozen network of some thousand weights."""

import dataclasses
import shutil
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ospnext_ms.build import build_dit
from ospnext_ms.config.sections import DiTSection
from ospnext_ms.generation.checks import check_files
from ospnext_ms.parallel.mesh import Mesh
from ospnext_ms.reporting.metrics import read_metrics
from ospnext_ms.runtime import start
from ospnext_ms.storage.open_weights import open_weights
from ospnext_ms.storage.peft_format import read_adapter, read_stored_adapter
from ospnext_ms.storage.training_checkpoint import open_checkpoint, problems_of
from ospnext_ms.training.loop import Trainer
from tests.support import post_train_runs
from tests.support import train_runs as runs
from tests.support.configs import write_config
from tests.support.msrun import environment
from tests.support.paths import ROOT
from tools.convert_checkpoint import main as convert

STEPS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.write_cache(tmp_path_factory.mktemp("cache") / "data")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return runs.write_base(tmp_path_factory.mktemp("base") / "dit.safetensors", num_layers=1)


def trainer(tmp_path, values, *overrides):
    config = runs.read_config(tmp_path / "config.yaml", values, *overrides)
    return Trainer(config, start(config.context), Mesh.single())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data, base):
    """(trainer at its end, folder of its run) of four steps with a checkpoint every two."""
    folder = tmp_path_factory.mktemp("finished")
    values = runs.adapter_settings(folder / "run", data, base, steps=STEPS, every=2)
    values["eval_dataset"] = {"path": str(data), "clips": 2, "sigmas": 2}
    run = trainer(folder, values)
    run.run()
    return run, folder / "run"


def step(folder, number):
    return folder / "checkpoints" / f"step_{number:08d}"


def tensors_of(path):
    return {(group, name): tensor.numpy() for group, tensors in open_checkpoint(path).groups.items()
            for name, tensor in tensors.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=str(key))


def exact_figures(folder):
    return [{name: record[name] for name in ("loss", "gradient_norm", "learning_rate", "clip_factor")}
            for record in read_metrics(folder) if "loss" in record]


def test_every_checkpoint_has_the_adapters_and_their_average_in_pefts_format(finished):
    run, folder = finished
    for number in (2, 4):
        groups = tensors_of(step(folder, number))
        assert {group for group, _ in groups} == {"parameters", "ema", "adam_m", "adam_v"}
        assert len(groups) == 4 * 2 * 5, "q and o of two attentions, ffn.0: A and B each"
        for name, group in (("adapter", "parameters"), ("adapter_ema", "ema")):
            config, arrays = read_adapter(step(folder, number) / name)
            assert (config.rank, config.alpha, config.targets) == (2, 4.0, ("ffn.0", "o", "q"))
            for layer, (a, b) in arrays.items():
                np.testing.assert_array_equal(a, groups[group, f"{layer}.lora_A"])
                np.testing.assert_array_equal(b, groups[group, f"{layer}.lora_B"])
                assert b.any()
    # Beside the checkpoints, at the end.
    for name in ("adapter", "adapter_ema"):
        assert_same(pairs(folder / name), pairs(step(folder, 4) / name))
    assert pairs(folder / "adapter").keys() == pairs(folder / "adapter_ema").keys()
    evaluated = [record for record in read_metrics(folder) if "eval_loss" in record]
    assert [record["step"] for record in evaluated] == [0, STEPS]
    assert evaluated[1]["eval_loss_ema"] != evaluated[1]["eval_loss"]


def pairs(folder):
    found = read_stored_adapter(folder).pairs
    return {(layer, i): array for layer, pair in found.items() for i, array in enumerate(pair)}


def test_the_network_itself_does_not_change(finished, base):
    run, _ = finished
    stored = {name: tensor.numpy() for name, tensor in open_weights(base).items()}
    now = {name: parameter.asnumpy() for name, parameter in run.net.parameters_and_names() if name in stored}
    assert_same(now, stored)


def test_generating_with_the_adapter_computes_what_was_trained(finished, base):
    run, folder = finished
    rng = np.random.default_rng(0)
    inputs = [Tensor(array.astype(np.float32)) for array in (
        rng.standard_normal((1, 16, 2, 8, 8)), np.array([700.0]), rng.standard_normal((1, 6, 8)))]
    section = DiTSection(**{**runs.DIT, "num_layers": 1}, checkpoint=str(base))
    plain = build_dit(section, run.runtime)(*inputs).asnumpy()
    used = build_dit(section, run.runtime, adapters=[(folder / "adapter", 1.0)])(*inputs).asnumpy()
    np.testing.assert_allclose(used, run.net(*inputs).asnumpy(), rtol=1e-4, atol=1e-6)
    assert abs(used - plain).max() > 1e-3


def test_stopped_and_resumed_equals_undisturbed_bit_by_bit(finished, data, base, tmp_path, capsys):
    _, folder = finished
    values = runs.adapter_settings(tmp_path / "run", data, base, steps=STEPS, every=2)
    run = trainer(tmp_path, values)
    runs.ask_for_an_end(run, step=3)
    with pytest.raises(SystemExit):
        run.run()
    assert (step(tmp_path / "run", 3) / "adapter_ema").is_dir()
    # What a run starts from is no matter to one that goes on, nor where the network lies.
    moved = shutil.copy(base, tmp_path / "moved.safetensors")
    again = trainer(tmp_path, values, "lora.checkpoint=gone", f"load_checkpoint={moved}")
    assert again.steps_done == 3
    again.run()
    assert f"resuming after step 3 from {step(tmp_path / 'run', 3)}; " in capsys.readouterr().out
    assert exact_figures(tmp_path / "run") == exact_figures(folder)
    assert_same(tensors_of(step(tmp_path / "run", STEPS)), tensors_of(step(folder, STEPS)))
    assert_same(pairs(tmp_path / "run" / "adapter_ema"), pairs(folder / "adapter_ema"))


def test_names_that_once_told_what_the_network_was_wrapped_in(finished, data, base, tmp_path):
    """Of post-training's adapters, before they were named by their layers."""
    stored = open_checkpoint(step(finished[1], STEPS))
    old = {group: {f"step_log_prob.velocity.net.{name.replace('.lora_', '.adapter.lora_')}": tensor
                   for name, tensor in tensors.items()} for group, tensors in stored.groups.items()}
    run = trainer(tmp_path, runs.adapter_settings(tmp_path / "run", data, base))
    run.learner.state.restore(dataclasses.replace(stored, groups=old))
    for group, arrays in run.learner.state.copy_to_host().items():
        assert_same(arrays, {name: tensor.numpy() for name, tensor in stored.groups[group].items()})


KILLED = """
import os, signal, sys
from ospnext_ms.__main__ import main
from ospnext_ms.reporting.monitor import Monitor
from ospnext_ms.storage.checkpoint_store import CheckpointStore

plain, stores = Monitor.step, []

def save(self, *arguments, plain=CheckpointStore.save):
    stores.append(self)
    plain(self, *arguments)

def step(self, number, *arguments):
    plain(self, number, *arguments)
    if number == 3:
        stores[-1].wait()
        os.kill(os.getpid(), signal.SIGKILL)

CheckpointStore.save, Monitor.step = save, step
sys.exit(main(["train", "--config", sys.argv[1]]))
"""


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed_bit_by_bit_compiled(data, base, tmp_path):
    undisturbed, killed = (runs.adapter_settings(tmp_path / name, data, base, steps=STEPS, every=2)
                           for name in ("undisturbed", "killed"))
    for values in (undisturbed, killed):
        values["context"]["mode"] = "graph"
    trainer(tmp_path, undisturbed).run()
    config = write_config(tmp_path / "killed.yaml", killed)
    done = subprocess.run([sys.executable, "-c", KILLED, str(config)], cwd=ROOT, env=environment(), check=False,
                          capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "killed" / "adapter").exists()
    run = trainer(tmp_path, killed)
    assert run.steps_done == 2
    run.run()
    assert exact_figures(tmp_path / "killed") == exact_figures(tmp_path / "undisturbed")
    assert_same(tensors_of(step(tmp_path / "killed", STEPS)), tensors_of(step(tmp_path / "undisturbed", STEPS)))


@pytest.mark.parametrize(("overrides", "line"), [
    (("lora.alpha=5",), "lora.alpha: 4.0 then, 5.0 now"), (("lora.rank=3",), "lora.rank: 2 then, 3 now"),
    (("lora=null",), "lora: {.*} then, null now"),
])
def test_a_run_of_other_adapters_is_another_run(finished, data, base, tmp_path, overrides, line):
    values = runs.adapter_settings(finished[1], data, base, steps=STEPS, every=2)
    with pytest.raises(ValueError, match=f"(?s)other settings:\n.*{line}.*such as .*step_00000004/adapter$"):
        trainer(tmp_path, values, *overrides)


def test_adapters_belong_to_their_network(finished, data, tmp_path):
    other = runs.write_base(tmp_path / "other.safetensors", num_layers=1, ffn_dim=20)
    values = runs.adapter_settings(finished[1], data, other, steps=STEPS, every=2)
    with pytest.raises(ValueError, match="contents of load_checkpoint: "):
        trainer(tmp_path, values)


def test_a_run_starts_from_an_adapter(finished, data, base, tmp_path):
    values = runs.adapter_settings(tmp_path / "run", data, base)
    values["lora"]["checkpoint"] = str(finished[1] / "adapter_ema")
    found = trainer(tmp_path, values).learner.state.copy_to_host()["parameters"]
    assert_same({tuple(name.rsplit(".lora_", 1)): array for name, array in found.items()},
                {(layer, "AB"[i]): array for (layer, i), array in pairs(finished[1] / "adapter_ema").items()})
    with pytest.raises(ValueError, match="has alpha 4 at rank 2, but lora.alpha is 8 at rank 2"):
        trainer(tmp_path, values, "lora.alpha=8")


def test_a_network_held_in_eight_bits(base, tmp_path):
    """As stored in full precision, and as stored in 8 bits: the same codes, so the same run."""
    eight = tmp_path / "eight.safetensors"
    config = {"model": {"dit": {**runs.DIT, "num_layers": 1}}}
    assert convert(["dit", "--source", str(base), "--target", str(eight), "--quant", "hif8", "--config",
                    str(write_config(tmp_path / "dit.yaml", config))]) == 0
    losses = []
    for name, weights in (("full", base), ("eight", eight)):
        values = runs.adapter_settings(tmp_path / name, None, weights, steps=1)
        values["lr_schedule"]["warmup_steps"] = 0
        values["model"]["dit"] |= {"quant": "hif8", "quant_attention": "hif8"}
        run = trainer(tmp_path, values)
        weight = dict(run.net.parameters_and_names())["blocks.0.self_attn.k.weight"]
        assert weight.dtype == ms.uint8
        run.run()
        losses.append(exact_figures(tmp_path / name))
    assert losses[0] == losses[1]
    assert losses[0][0]["gradient_norm"] > 0


def test_a_checkpoint_of_adapters_in_the_place_of_a_network(finished, data, base, tmp_path, capsys):
    _, folder = finished
    ema = step(folder, 4) / "ema"
    said = rf"{ema} holds adapters, no whole network: .* and as adapter {step(folder, 4)}/adapter_ema$"
    values = runs.settings(tmp_path / "run", data) | {"load_checkpoint": str(ema)}
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, values)
    model = post_train_runs.write_model(tmp_path)
    config = post_train_runs.settings(model, tmp_path / "policy")
    config["model"]["dit"]["checkpoint"] = str(ema)
    with pytest.raises(ValueError, match=f"^model.dit.checkpoint: {said}"):
        check_files(post_train_runs.read_config(tmp_path / "p.yaml", config))
    for kind in ("dit", "lora"):
        assert convert([kind, "--source", str(ema), "--target", str(tmp_path / "converted")]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert convert(["lora", "--source", str(step(folder, 4) / "adapter_ema"), "--target", str(tmp_path / "a")]) == 0
    for wrong in (ema, step(folder, 4)):
        with pytest.raises(FileNotFoundError, match=r"of a training checkpoint, whose adapter is .*4/adapter_ema$"):
            read_stored_adapter(wrong)


def test_a_damaged_adapter_of_a_checkpoint_is_refused(finished, tmp_path):
    copy = shutil.copytree(step(finished[1], 4), tmp_path / "step_00000004")
    assert problems_of(copy) == []
    file = copy / "adapter_ema" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    assert len(problems_of(copy)) == 1
    with pytest.raises(ValueError, match="adapter_ema is refused: .*adapter_model.safetensors is damaged"):
        read_stored_adapter(copy / "adapter_ema")
