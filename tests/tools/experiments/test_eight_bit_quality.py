"""The quality of 8 bits on the tiny model: networks are built as their modes say, latents and report follow."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference networks need PyTorch")
pytest.importorskip("sklearn", reason="the judge needs scikit-learn")

from tools.experiments import eight_bit_quality as quality  # noqa: E402
from tools.tiny_family.recipe import FOLDER, load_recipe  # noqa: E402
from tools.torch_reference.gpu.float8 import Float8Linear  # noqa: E402


def test_report_compares_every_mode_with_bf16(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "ERROR_STEPS", 1)
    monkeypatch.setattr(quality, "ERROR_SAMPLES", 1)
    built = []

    def clips(recipe, weights, model, texts, noise, sampling, device, dit):
        built.append(dit)
        return np.zeros((len(texts), 2, 32, 32, 3), np.uint8)

    monkeypatch.setattr(quality, "torch_clips", clips)
    monkeypatch.setattr(quality, "judge_all", lambda clips: [None] * len(clips))
    monkeypatch.setattr(quality, "score", lambda verdicts, prompts: ([True] * len(prompts), [False] * len(prompts)))
    modes = ["fp32", "bf16", "8-bit linears and attention", "HiF8 linears and attention, emulated"]
    quality.main(["--samples", "3", "--output", str(tmp_path), "--modes", *modes])
    report = json.loads((tmp_path / "report.json").read_text())["modes"]
    assert list(report) == modes
    assert [report[mode].get("against") for mode in modes] == [None, "fp32", "bf16", "bf16"]
    errors = [report[mode]["latent_error"] for mode in modes[1:]]
    assert 1e-4 < errors[0] < errors[1] < 0.5
    assert report["bf16"]["digit"]["share"] == 1
    assert report["bf16"]["direction"]["share"] == 0
    kinds = [any(isinstance(module, Float8Linear) for module in dit.modules()) for dit in built]
    assert kinds == [False, False, True, True]
    assert built[0].dtype == torch.float32


def test_first_steps_run_in_bf16():
    recipe = load_recipe(FOLDER / "train.yaml")
    mode = next(mode for mode in quality.modes() if "first 2 steps" in mode)
    network = quality.build(recipe, FOLDER / "weights", "cpu", mode, recipe.sampling)
    sigmas = quality.flow.inference_sigmas(recipe.sampling.num_steps, recipe.sampling.shift)
    ran = []
    network.first, network.then = (lambda *_, name=name: ran.append(name) for name in ("first", "then"))
    for sigma in sigmas[:-1]:
        network(None, torch.full((1,), 1000 * sigma.item()), None)
    assert ran == ["first"] * 2 + ["then"] * (recipe.sampling.num_steps - 2)
