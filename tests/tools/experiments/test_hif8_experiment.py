"""The HiF8 experiment: what it would run, what it reports, and its evaluation on made-up weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ospnext_ms.config.reader import load_config
from ospnext_ms.config.train import TrainConfig
from tests.support.paths import TINY_WEIGHTS
from tests.support.train_runs import write_cache
from tools.experiments import hif8_cross, hif8_evaluation, hif8_experiment


@pytest.fixture
def arguments(tmp_path):
    words = f"run --output {tmp_path} --data cache --held-out held --steps 40 --seeds 0 3".split()
    return hif8_experiment.parse_arguments(words)


def write_run(folder, after, steps=40, seconds=0.5, diverged=False, planned=None):
    folder.mkdir(parents=True)
    (folder / "configuration.json").write_text(json.dumps({"runner_config": {"steps": planned or steps}}))
    records = [{"step": 0, "eval_loss": 1.1, "eval_loss_ema": 1.0}]
    records += [{"step": i, "loss": 1 / i, "step_seconds": seconds} for i in range(1, steps + 1)]
    records += [] if diverged else [{"step": steps, "eval_loss": 9.0, "eval_loss_ema": after}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    if diverged:
        (folder / "diverged.txt").write_text("loss is not finite\n")


def test_pairs_come_first_and_differ_in_the_recipe_only(arguments):
    runs = hif8_experiment.planned(arguments)
    assert runs == [("fp32", 0), ("hif8", 0), ("hif8_centred", 0), ("fp32", 3), ("hif8", 3), ("hif8_centred", 3),
                    ("hif8_32768", 0)]
    configs = {}
    for run in runs:
        command = hif8_experiment.command_of(arguments, *run)
        config = load_config(TrainConfig, command[command.index("--config") + 1],
                             [text for flag, text in zip(command, command[1:], strict=False) if flag == "--set"])
        assert (config.seed, config.runner_config.steps) == (run[1], 40)
        assert config.train_dataset.path == "cache"
        configs[run] = config
    fp32, hif8, centred, ablation = (configs[run].model.dit for run in (*runs[:3], runs[-1]))
    assert (hif8.quant_config.centre_keys, centred.quant_config.centre_keys) == (False, True)
    assert (fp32.quant, hif8.quant, hif8.quant_attention) == (None, "hif8", "hif8")
    assert (hif8.quant_config.scale_max_forward, hif8.quant_config.scale_max_backward) == (15.0, 224.0)
    assert (ablation.quant_config.scale_max_forward, ablation.quant_config.scale_max_backward) == (32768.0, 32768.0)
    assert configs[runs[0]].flow == configs[runs[1]].flow
    assert configs[runs[0]].optimizer == configs[runs[1]].optimizer


def test_only_what_is_missing_is_trained_and_a_failure_stops(arguments, monkeypatch):
    for recipe, seed in (("fp32", 0), ("hif8", 0)):
        write_run(hif8_experiment.folder_of(arguments.output, recipe, seed), 0.5)
    trained = []

    def run(command, **options):
        folder = Path(next(text for text in command if text.startswith("output_dir=")).removeprefix("output_dir="))
        trained.append(folder.name)
        write_run(folder, 0.5, diverged=folder.name.startswith("hif8_32768"))
        (folder / "diverged.txt").unlink(missing_ok=True)
        failed = folder.name.startswith("hif8_32768")
        return type("Done", (), {"returncode": 2 * failed, "stderr": "error: step 3: loss or gradient is not finite"})

    monkeypatch.setattr(hif8_experiment.subprocess, "run", run)
    hif8_experiment.train(arguments)
    assert trained == ["hif8_centred_0", "fp32_3", "hif8_3", "hif8_centred_3", "hif8_32768_0"]
    hif8_experiment.train(arguments)
    assert len(trained) == 5
    assert hif8_experiment.report(arguments.output)["runs"]["hif8_32768"]["0"]["diverged"]
    monkeypatch.setattr(hif8_experiment.subprocess, "run",
                        lambda *a, **k: type("Done", (), {"returncode": 1, "stderr": "no such file"}))
    arguments.seeds = [7]
    with pytest.raises(RuntimeError, match="fp32_7 failed with exit code 1"):
        hif8_experiment.train(arguments)


def test_report_gives_differences_by_seed_and_of_the_means(tmp_path, capsys):
    for name, after in {"fp32_0": 0.5, "fp32_1": 0.25, "hif8_0": 0.51, "hif8_1": 0.25, "hif8_32768_0": 0.75}.items():
        write_run(tmp_path / name, after)
    result = hif8_experiment.report(tmp_path)
    above = result["percent_above_fp32"]
    assert above["hif8"] == pytest.approx({"0": 2.0, "1": 0.0})
    assert above["hif8_32768"] == pytest.approx({"0": 50.0})
    assert result["percent_above_fp32_of_means"]["hif8"] == pytest.approx(100 * (0.76 / 0.75 - 1))
    assert (tmp_path / "curves.png").stat().st_size > 5000
    assert json.loads((tmp_path / "report.json").read_text()) == result
    hif8_experiment.print_table(result)
    assert "+2.00 %" in capsys.readouterr().out


def test_an_unfinished_run_is_compared_with_nothing(tmp_path, capsys):
    write_run(tmp_path / "fp32_0", 0.5)
    write_run(tmp_path / "hif8_0", 0.75, steps=20, planned=40)
    result = hif8_experiment.report(tmp_path)
    assert result["percent_above_fp32"] == {"hif8": {}}
    hif8_experiment.print_table(result)
    assert "unfinished" in capsys.readouterr().out


def test_weights_are_measured_in_both_arithmetics(tmp_path, capsys):
    (tmp_path / "weights").mkdir()
    for name in ("fp32_0", "hif8_0", "hif8_32768_0"):
        shutil.copy(TINY_WEIGHTS / "dit_sparse.safetensors", tmp_path / "weights" / f"{name}.safetensors")
    held_out = write_cache(tmp_path / "cache", count=1, text_dim=64)
    small = ["context.mode=pynative", "context.device_target=CPU", "eval_dataset.clips=1", "eval_dataset.sigmas=2"]
    hif8_cross.main(["--experiment", str(tmp_path), "--held-out", str(held_out),
                     *(word for text in small for word in ("--set", text))])
    result = json.loads((tmp_path / "cross.json").read_text())
    assert list(result) == ["fp32_0", "hif8_0"]
    assert result["fp32_0"] == result["hif8_0"]
    assert 0 < abs(result["fp32_0"]["hif8"] / result["fp32_0"]["fp32"] - 1) < 0.05
    assert "computed in hif8" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="fp32_SEED"):
        hif8_cross.weights_of(tmp_path / "cache")


def test_report_of_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no runs in"):
        hif8_experiment.report(tmp_path)


def test_evaluation_compares_pairs(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    for name in ("fp32_0", "hif8_0", "hif8_1", "hif8_32768_0"):
        shutil.copy(TINY_WEIGHTS / "dit_sparse.safetensors", tmp_path / "weights" / f"{name}.safetensors")
    assert hif8_evaluation.seeds_of(tmp_path) == ["0"]
    made = []

    def clips(recipe, weights, model, texts, noise, sampling, device, dit):
        made.append(dit)
        return np.zeros((len(texts), 17, 128, 128, 3), np.uint8)

    monkeypatch.setattr(hif8_evaluation, "torch_clips", clips)
    hif8_evaluation.main(["--experiment", str(tmp_path), "--samples", "4", "--output", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["together"]["digit"]["count"] == 4
    kinds = [type(dit.blocks[0].self_attn.q).__name__ for dit in made]
    assert kinds == ["Linear", "HiF8Linear"]
    with pytest.raises(FileNotFoundError, match="no pairs"):
        hif8_evaluation.seeds_of(tmp_path / "out")
