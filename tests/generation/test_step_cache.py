"""Steps that reuse an earlier one: calibration, and what a run makes of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ospnext_ms.diffusion.step_reuse import reused_steps
from ospnext_ms.generation.calibrate import calibrate
from ospnext_ms.generation.jobs import plain_jobs
from ospnext_ms.generation.run import generate
from ospnext_ms.generation.step_cache import CachedVelocity, calibration_of, reused_steps_of, write_calibration
from ospnext_ms.generation.text_to_video import TextToVideo
from ospnext_ms.models.lora_config import LoRAConfig
from ospnext_ms.runtime import start
from ospnext_ms.storage.peft_format import write_adapter
from tests.support.compare import relative_error
from tools.torch_reference.step_cache import CachedDiT

PROMPTS = ["one red", "two blue"]
STEPS = 6


@pytest.fixture
def change(configure, tmp_path):
    """Function that makes a configuration of two prompts with changes to sampling."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    fixed = {"steps": STEPS, "sampler": "euler", "shift": 3.0, "guidance": 3.0, "batch_size": 1, "cache": None}
    return lambda **sampling: configure(sampling=fixed | sampling,
                                        prompts={"prompt": None, "prompt_file": str(prompts)})


def latents(config):
    pipeline = TextToVideo(config, start(config.context), plain_jobs(config.sampling, PROMPTS))
    return np.stack([latent for _, latent in pipeline.latents()])


def test_cached_videos(change, tmp_path, capsys):
    path = tmp_path / "calibration.json"
    assert f"{STEPS} ratios" in calibrate(change(), path)
    cache = {"calibration": str(path), "first_share": 0.3}
    plain = latents(change())
    assert (latents(change(cache=cache | {"threshold": 1e-9})) == plain).all()
    assert f"0 of {STEPS} steps reuse" in capsys.readouterr().out
    cached = latents(change(cache=cache | {"threshold": 10.0, "max_reused": 1}))
    assert f"2 of {STEPS} steps reuse" in capsys.readouterr().out
    assert 1e-6 < relative_error(cached, plain) < 0.1
    # Two videos in one batch are those of two batches: nothing is left of the batch before.
    assert relative_error(latents(change(cache=cache | {"threshold": 10.0, "max_reused": 1}, batch_size=2)),
                          cached) < 1e-5


def test_a_calibration_that_cannot_be_written_is_refused_before_a_run(change, tmp_path):
    with pytest.raises(ValueError, match=r"--output is .*, a folder; give a file, for example .*calibration.json"):
        calibrate(change(), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="the folder of --output is .*file, but .*file is a file"):
        calibrate(change(), tmp_path / "file" / "calibration.json")


def test_what_was_calibrated_otherwise_is_refused_before_a_run(change, tmp_path):
    path = tmp_path / "calibration.json"
    write_calibration(path, calibration_of(change(), [1.0, 0.9, 0.99, 0.99, 0.95, 0.9]))
    cache = {"calibration": str(path)}
    there = json.loads(path.read_text())
    assert reused_steps_of(change(cache=cache)) == reused_steps(there["ratios"], 0.12, 2, 0.2)
    for changes, message in [({"steps": 5}, r"steps 6 \(this run's is 5\)"), ({"shift": 2.0}, "shift"),
                             ({"sampler": "unipc"}, "sampler 'euler'"), ({"guidance": 2.0}, "guidance")]:
        with pytest.raises(ValueError, match=message):
            generate(change(cache=cache, **changes))
    path.write_text(json.dumps(there | {"transformer": "0" * 16}))
    with pytest.raises(ValueError, match="transformer '0000000000000000'.* run calibrate-cache again"):
        generate(change(cache=cache))
    path.write_text(json.dumps(there | {"ratios": there["ratios"][1:]}))
    with pytest.raises(ValueError, match="6 steps but has 5 ratios"):
        generate(change(cache=cache))
    folder = tmp_path / "adapter"
    write_adapter(folder, LoRAConfig(rank=2, alpha=2.0, targets=("q",)),
                  {"blocks.0.self_attn.q": (np.ones((2, 32), np.float32), np.ones((32, 2), np.float32))})
    path.write_text(json.dumps(there))
    adapted = replace(change(cache=cache), adapter=str(folder))
    with pytest.raises(ValueError, match=r"adapters None \(this run's is '\w{16} x 1'\); run calibrate-cache again"):
        generate(adapted)
    write_calibration(path, calibration_of(adapted, there["ratios"]))
    assert reused_steps_of(adapted) == reused_steps(there["ratios"], 0.12, 2, 0.2)
    with pytest.raises(ValueError, match=r"adapters '\w{16} x 1' \(this run's is None\)"):
        reused_steps_of(change(cache=cache))
    config = change(cache=cache)
    with pytest.raises(ValueError, match="transformer"):
        reused_steps_of(replace(config, model=replace(config.model, dit=replace(config.model.dit, quant="hif8"))))
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not what calibrate-cache writes"):
        generate(change(cache=cache))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="calibrate-cache writes it"):
        generate(change(cache=cache))


def test_each_branch_of_guidance_has_its_own_residual():
    calls = []

    def computed(x, t, text):
        calls.append(("computed", t, text))
        return x, f"residual of {text} at {t}"

    def reused(x, t, text, residual):
        calls.append((residual, t, text))
        return x

    velocity = CachedVelocity(computed, reused, [False, True, False], 2)
    for t in (9, 8, 7):
        for text in ("prompt", "negative"):
            velocity(0, t, text)
    assert calls[2:4] == [("residual of prompt at 9", 8, "prompt"), ("residual of negative at 9", 8, "negative")]
    assert [name for name, _, _ in calls[4:]] == ["computed", "computed"]


class Toy:
    """Stands for the reference network: blocks that add t times the input."""

    def project(self, x, t, added):
        return x + added

    def forward_with_added(self, x, t, text):
        return x + t * x, t * x


def test_the_reference_reuses_alike():
    x = torch.ones(2, 3, 4)
    measured = CachedDiT(Toy(), num_steps=3)
    for t in (4.0, 2.0, 1.0):
        measured(x, t, None)
    assert measured.ratios == [[], [0.5], [0.5]]
    cached = CachedDiT(Toy(), [False, True, False])
    assert [cached(x, t, None)[0, 0, 0].item() for t in (4.0, 2.0, 1.0, 3.0, 9.0)] == [5, 5, 2, 4, 4]
