"""A new look is seen where it is, and only there; the digit and its way are judged as without it."""

import json

import numpy as np
import pytest

from tests.support.paths import ROOT
from tools.tiny_family import digits, looks
from tools.tiny_family.write_videos import make_clips

CLIPS = 12


@pytest.fixture(scope="module")
def clips():
    """{look: (clips, labels)} of one digit each."""
    labels = digits.make_clips(7, 0, CLIPS, "held_out")[2]
    single = [i for i, label in enumerate(labels) if label["second_digit"] < 0]
    return {look: (make_clips(7, 0, CLIPS, "held_out", look)[0][single], [labels[i] for i in single])
            for look in looks.LOOKS}


@pytest.mark.parametrize(("drawn", "look"), [(drawn, look) for look in looks.LOOKS[1:] for drawn in ("plain", look)])
def test_what_is_seen_in_a_look(clips, drawn, look):
    """Each look is told from the plain one."""
    frames, labels = clips[drawn]
    assert len(labels) >= 10
    for clip, label in zip(frames, labels, strict=True):
        verdict, has_look = looks.judge_clip(clip, look)
        assert has_look == (drawn == look)
        assert (verdict.digit, verdict.direction) == (label["digit"], label["direction"])


def test_the_bar_alone_is_painted_over(clips):
    underlined, plain = (clips[look][0][0] for look in ("underlined", "plain"))
    rest, share = looks.without_bars(underlined)
    assert share == 1
    assert 0 < rest.astype(int).sum() < underlined.astype(int).sum()
    np.testing.assert_array_equal(looks.without_bars(plain)[0], plain)
    dark = np.zeros_like(plain)
    np.testing.assert_array_equal(looks.without_bars(dark)[0], dark)


def test_a_shape_is_judged_at_one_level(clips):
    shaded = clips["shaded"][0][0]
    rest, share = looks.without_shade(shaded)
    assert share == 1
    assert (rest[shaded > 0.4 * shaded.max()] >= 250).all()
    dark = np.zeros_like(shaded)
    assert looks.without_shade(dark)[1] == 0
    with pytest.raises(ValueError, match="look is 'plain'; valid: shaded, underlined"):
        looks.judge_clip(shaded, "plain")


def test_captions_do_not_tell_the_look():
    for look in looks.LOOKS:
        assert make_clips(3, 5, 2, "train", look)[1] == digits.captions_of_clips(3, 5, 2)
    with pytest.raises(ValueError, match="look is 'bold'; valid: plain, shaded, underlined"):
        make_clips(3, 5, 1, "train", "bold")


@pytest.mark.framework
def test_evaluation_compares_pairs(monkeypatch, tmp_path, capsys):
    """Losses by the networks; videos by clips of the two looks in their place."""
    from tests.support import train_runs
    from tools.tiny_family import backends, evaluate_look

    monkeypatch.chdir(ROOT)
    data = train_runs.write_cache(tmp_path / "data", count=3)
    base = train_runs.write_base(tmp_path / "base.safetensors", num_layers=1)
    values = train_runs.adapter_settings(tmp_path / "run", data, base)
    values["eval_dataset"] = {"path": str(data), "clips": 3, "sigmas": 1}
    from ospnext_ms.models.lora_config import LoRAConfig
    from ospnext_ms.storage.peft_format import write_adapter
    from tests.support.configs import write_config

    rng = np.random.default_rng(0)
    pairs = {"blocks.0.self_attn.q": tuple(rng.standard_normal(shape, np.float32) for shape in ((2, 16), (16, 2)))}
    write_adapter(tmp_path / "adapter", LoRAConfig(rank=2, alpha=2.0, targets=("q",)), pairs)

    def clips(recipe, weights, model, prompts, noise, sampling, adapter):
        return make_clips(7, 0, len(prompts), "held_out", "shaded" if adapter else "plain")[0]

    monkeypatch.setattr(backends, "mindspore_clips", clips)
    evaluate_look.main(["--config", str(write_config(tmp_path / "c.yaml", values)), "--adapter",
                        str(tmp_path / "adapter"), "--samples", "4", "--output", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    looked = report["judged"]["look"]
    assert (looked["before"]["share"], looked["after"]["share"]) == (0, 1)
    assert looked["difference"]["difference"] == 1
    loss = report["loss"]
    assert loss["difference"]["count"] == 3
    change = loss["after"]["difference"] - loss["before"]["difference"]
    assert loss["difference"]["difference"] == pytest.approx(change, abs=2e-4)
    assert change != 0
    assert (tmp_path / "out" / "after.png").is_file()
    assert "look right" in capsys.readouterr().out
