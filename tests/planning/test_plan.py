"""`plan` on files: figures of the 14B model at 720P, what is printed, and errors; no framework is loaded."""

import json
import subprocess
import sys

import pytest

from ospnext_ms.__main__ import main
from tests.support.caches import make_cache
from tests.support.paths import ROOT

GENERATE_14B = str(ROOT / "yaml_configs" / "generate" / "14b.yaml")
TRAIN_14B = str(ROOT / "yaml_configs" / "train" / "14b.yaml")
ONE_DEVICE = ["--set", "parallel_config={}"]


def figures(capsys, *arguments):
    assert main(["plan", "--json", "--config", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_training_14b_at_720p_on_eight_devices(capsys):
    plan = figures(capsys, TRAIN_14B, "--set", "runner_config.peak_tflops=350")
    assert plan["parameters"] == plan["trained_parameters"] == 14_288_491_584
    assert (plan["devices"], plan["tokens"]) == (8, 75600)
    assert plan["fits"] == {"64": True, "128": True}
    assert plan["memory"]["without recompute"]["total"] > 128e9
    assert plan["total"] == plan["memory"]["with recompute"]["total"]
    assert plan["speed_up"]["operations"] == pytest.approx(1.76, abs=0.006)
    assert plan["speed_up"]["predicted"] == pytest.approx(1.88, abs=0.015)
    # Three passes, and a fourth that is recomputation.
    assert plan["flops"]["step"] == 3 * plan["flops"]["forward"]["total"]
    assert plan["flops"]["device"] == pytest.approx(4 / 3 * plan["flops"]["step"] / 8)
    assert plan["flops"]["seconds_at_peak"] == pytest.approx(plan["flops"]["device"] / 350e12)


def test_host_memory_of_loading(capsys):
    """Processes that share the weights hold 1/8 of them each; the text encoder is whole in each."""
    degrees = "skiparse_parallel: 4, ulysses_parallel: 2"
    sharded, whole = (figures(capsys, GENERATE_14B, "--devices", "8", "--set",
                              f"parallel_config={{{degrees}, parameter_shard: {shard}}}")["host"] for shard in (8, 1))
    assert sharded["processes"] == whole["processes"] == 8
    less = whole["process"]["transformer"] - sharded["process"]["transformer"]
    assert less == pytest.approx(7 / 8 * 28.6e9, rel=0.01)
    assert 11.3e9 < sharded["process"]["text encoder"] == whole["process"]["text encoder"] < 20e9
    assert sharded["together"] == 8 * sharded["process"]["text encoder"]
    assert whole["together"] == 8 * whole["process"]["transformer"]
    assert figures(capsys, TRAIN_14B, "--devices", "64")["host"]["processes"] == 8


def test_training_14b_does_not_fit_one_device(capsys):
    plan = figures(capsys, TRAIN_14B, *ONE_DEVICE)
    assert plan["devices"] == 1
    assert plan["fits"] == {"64": False, "128": False}


def test_generating_with_14b_on_one_device(capsys):
    plan = figures(capsys, GENERATE_14B)
    assert plan["fits"] == {"64": True, "128": True}
    assert plan["trained_parameters"] == 0
    assert plan["flops"]["step"] == 100 * plan["flops"]["forward"]["total"]


@pytest.mark.parametrize(("file", "devices", "trained"), [
    ("train/1_3b", 8, 1_418_996_800), ("train/tiny", 1, None), ("generate/1_3b", 1, 0), ("generate/tiny", 1, 0),
    ("post_train/tiny", 1, None), ("train/tiny_lora", 1, None), ("train/1_3b_lora", 8, 30 * 8 * 32 * 2 * 1536),
])
def test_all_kinds_of_runs_can_be_planned(file, devices, trained, capsys):
    plan = figures(capsys, str(ROOT / "yaml_configs" / f"{file}.yaml"))
    assert plan["devices"] == devices
    assert plan["total"] > 0
    assert trained is None or plan["trained_parameters"] == trained


def test_training_adapters_keeps_moments_and_averages_of_them_alone(capsys):
    adapters = 40 * 8 * 32 * 2 * 5120
    plan = figures(capsys, str(ROOT / "yaml_configs" / "train" / "14b_lora.yaml"))
    whole = figures(capsys, TRAIN_14B)
    assert plan["trained_parameters"] == adapters
    lasting, phases = (plan["memory"]["with recompute"][name] for name in ("lasting", "phases"))
    assert lasting == {"weights": lasting["weights"], "optimiser": 8 * adapters, "adapters": 4 * adapters,
                       "EMA": 4 * adapters}
    # The frozen network lies in the compute dtype, a trained one in fp32.
    assert 2 * lasting["weights"] == whole["memory"]["with recompute"]["lasting"]["weights"]
    assert phases["backward"]["gradients"] == 4 * adapters
    assert plan["bytes_of_a_step"]["gradients"] == 2 * 7 * 4 * adapters // 8
    assert plan["total"] < whole["total"]
    eight = figures(capsys, str(ROOT / "yaml_configs" / "train" / "14b_lora.yaml"), "--set", "model.dit.quant=hif8")
    assert eight["memory"]["with recompute"]["lasting"]["weights"] < 0.55 * lasting["weights"]


def test_each_branch_of_guidance_on_devices_of_its_own(capsys):
    plan = figures(capsys, GENERATE_14B, "--set", "parallel_config.split_guidance=true")
    assert plan["devices"] == 2
    assert (plan["flops"]["videos"], plan["flops"]["calls"]) == (1, 1)
    assert plan["flops"]["step"] == 100 * plan["flops"]["forward"]["total"]
    assert plan["flops"]["device"] == 50 * plan["flops"]["forward"]["total"]


def test_what_is_printed(capsys):
    assert main(["plan", "--config", TRAIN_14B]) == 0
    out = capsys.readouterr().out
    for text in ("grid 21x45x80 = 75,600 tokens", "parameters of the transformer: 14,288,491,584", "optimiser",
                 "64 GB a device: fits", "128 GB a device: fits", "1.76x fewer operations",
                 "31 switches, formula 4.50 GB", "prepare_data/720p.yaml",
                 "memory of a device without recompute"):
        assert text in out
    assert main(["plan", "--config", TRAIN_14B, *ONE_DEVICE]) == 0
    assert "128 GB a device: does not fit" in capsys.readouterr().out


def test_devices_and_size_of_the_video(tmp_path, capsys):
    plan = figures(capsys, TRAIN_14B, "--devices", "64", "--video", "480", "832", "49")
    assert plan["degrees"] == {"data": 8, "skiparse": 4, "ulysses": 2, "parameter_shard": 8}
    assert plan["grid"] == [13, 30, 52]
    make_cache(tmp_path / "cache")
    plan = figures(capsys, TRAIN_14B, "--set", f"train_dataset.path={tmp_path}/cache")
    assert plan["video"] == [32, 48, 9]
    assert plan["notes"][0] == f"size of video: the largest bucket of {tmp_path}/cache"
    plan = figures(capsys, TRAIN_14B, "--set", "train_dataset.path=elsewhere")
    assert plan["video"] == [720, 1280, 81]
    assert "as there is no cache at elsewhere yet" in plan["notes"][0]
    plan = figures(capsys, TRAIN_14B, "--set", "train_dataset={kind: random, latent_size: [3, 32, 48]}")
    assert plan["video"] == [256, 384, 9]


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--devices", "12"], "12 processes run"),
    (["--set", "parallel_config.skiparse_parallel=3"], "skiparse_parallel is 3"),
    (["--set", "runner_config.batch_sice=2"], "did you mean batch_size"),
    (["--set", "parallel_config.ulysses_parallel=3"], "12 does not divide the 40 heads"),
    (["--video", "700", "1280", "81"], "700"), (["--video", "720", "1280", "80"], "80"),
])
def test_what_cannot_be_planned(capsys, arguments, expected):
    assert main(["plan", "--config", TRAIN_14B, *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_files_without_a_network_to_plan(tmp_path, capsys):
    assert main(["plan", "--config", str(ROOT / "yaml_configs" / "prepare_data" / "tiny.yaml")]) == 2
    assert "plan knows generate, train, finetune, post_train" in capsys.readouterr().err
    assert main(["plan", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "no configuration file" in capsys.readouterr().err


def test_no_framework_is_loaded():
    program = ("import sys; from ospnext_ms.__main__ import main; code = main(['plan', '--config', sys.argv[1]]); "
               "assert 'mindspore' not in sys.modules; sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", program, TRAIN_14B], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
