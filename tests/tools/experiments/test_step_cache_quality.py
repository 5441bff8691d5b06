"""The quality of reused steps on the tiny model: ratios are measured, steps chosen by them, and the report follows."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference networks need PyTorch")
pytest.importorskip("sklearn", reason="the judge needs scikit-learn")

from ospnext_ms.diffusion.step_reuse import reused_steps  # noqa: E402
from tools.experiments import step_cache_quality as quality  # noqa: E402


def test_report(tmp_path, monkeypatch):
    computed = []

    def clips(recipe, weights, model, texts, noise, sampling, device, dit):
        config = recipe.dit("sparse")
        sample = torch.from_numpy(noise[:1])
        text = torch.zeros(1, config.text_len, config.text_dim)
        handle = dit._dit.blocks[0].register_forward_hook(lambda *_: computed.append(1))
        for i in range(sampling.num_steps):
            dit(sample, torch.full((1,), 1000 * (1 - i / sampling.num_steps)), text)
        handle.remove()
        return np.zeros((len(texts), 2, 32, 32, 3), np.uint8)

    monkeypatch.setattr(quality, "torch_clips", clips)
    monkeypatch.setattr(quality, "judge_all", lambda clips: [None] * len(clips))
    monkeypatch.setattr(quality, "score", lambda verdicts, prompts: ([True] * len(prompts), [False] * len(prompts)))
    quality.main(["--samples", "3", "--output", str(tmp_path), "--thresholds", "0.5"])
    report = json.loads((tmp_path / "report.json").read_text())
    steps, ratios = report["thresholds"]["0.0"]["steps"], report["ratios"]
    assert len(ratios) == steps
    assert len(set(ratios[1:])) > 1
    reused = sum(reused_steps(ratios, 0.5, 2, 0.2))
    assert 0 < reused < steps
    assert [entry["steps_reused"] for entry in report["thresholds"].values()] == [0, reused]
    assert len(computed) == 3 * steps - reused
    assert report["thresholds"]["0.5"]["digit_difference"]["difference"] == 0
