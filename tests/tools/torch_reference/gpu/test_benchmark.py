"""The benchmark on the CPU at the size `tiny`: it runs, counts and reports what it says."""

import json

import pytest

torch = pytest.importorskip("torch", reason="the reference networks need PyTorch")

from ospnext_ms.models.flops import forward_flops  # noqa: E402
from tools.torch_reference.gpu import benchmark, fused, video  # noqa: E402
from tools.torch_reference.gpu.checks import run_checks  # noqa: E402
from tools.torch_reference.gpu.profiling import kind_of  # noqa: E402
from tools.torch_reference.gpu.report import ideal_seconds, plot, summarise  # noqa: E402
from tools.torch_reference.gpu.settings import MODELS, SETTINGS, random_inputs, random_model  # noqa: E402
from tools.torch_reference.gpu.training_step import training_config  # noqa: E402


def test_tiny_run_writes_what_it_measured(tmp_path, capsys):
    assert benchmark.main(["--setting", "tiny", "--repeats", "3", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "tiny_tiny_forward_1gpu.json").read_text())
    assert [row["mode"] for row in result["measurements"]] == ["full", "sparse"]
    for row in result["measurements"]:
        assert len(row["seconds"]) == 3
        assert min(row["seconds"]) > 0
        assert sorted(row["seconds"])[1] == row["median"]
    grid = SETTINGS["tiny"].grid
    assert result["measurements"][1]["flops"] == forward_flops(MODELS["tiny"], grid)
    assert result["measurements"][0]["flops"]["total"] > result["measurements"][1]["flops"]["total"]
    assert all(result["ceilings"][name] > 0 for name in ("matmul", "attention", "copy"))
    assert "speed-up" in capsys.readouterr().out


def test_a_failing_variant_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fused.InductorKernels, "norm", lambda *_: 1 / 0)
    code = benchmark.main(["--setting", "tiny", "--mode", "sparse", "--kernels", "inductor", "eager", "--repeats", "1",
                           "--output", str(tmp_path)])
    result = json.loads((tmp_path / "tiny_tiny_forward_1gpu.json").read_text())
    assert code == 1
    assert [row["kernels"] for row in result["measurements"]] == ["eager"]
    assert [error["name"] for error in result["errors"]] == ["sparse, inductor"]
    assert "FAILED sparse, inductor" in capsys.readouterr().out


def test_train_step_runs(tmp_path):
    assert benchmark.main(["--setting", "tiny", "--train-step", "--num-layers", "8", "--repeats", "1", "--output",
                           str(tmp_path)]) == 0
    result = json.loads((tmp_path / "tiny_tiny_train_1gpu.json").read_text())
    assert {row["mode"] for row in result["measurements"]} == {"full", "sparse"}
    assert result["train_layers"] == 8


def test_whole_video_is_sampled_and_decoded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(video, "VAE_DIM", 8)
    monkeypatch.setattr(video, "STEPS", 3)
    for steps, modes in ((3, ["full"]), (2, ["sparse"])):
        assert benchmark.main(["--setting", "tiny", "--mode", *modes, "--video", "--video-steps", str(steps),
                               "--output", str(tmp_path)]) == 0
        rows = json.loads((tmp_path / "tiny_tiny_video_1gpu.json").read_text())["videos"]
        assert [row["mode"] for row in rows] == modes
        for row in rows:
            assert row["video"] == [1, 3, 5, 96, 96]
            assert row["total_is_measured"] == (steps == 3)
            sampling = row["sampling_seconds"] if steps == 3 else 3 * row["step_seconds"]
            assert row["total_seconds"] == pytest.approx(sampling + row["decode_seconds"])
            assert 0 < row["step_seconds"] <= row["sampling_seconds"]
    assert "worked out for 3 steps" in capsys.readouterr().out


def test_video_with_reused_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(video, "VAE_DIM", 8)
    monkeypatch.setattr(video, "STEPS", 5)
    assert benchmark.main(["--setting", "tiny", "--mode", "sparse", "--video", "--video-reused", "0", "2", "--output",
                           str(tmp_path)]) == 0
    without, cached = json.loads((tmp_path / "tiny_tiny_video_1gpu.json").read_text())["videos"]
    assert (without["steps_reused"], cached["steps_reused"]) == (0, 2)
    assert without["reused_step_seconds"] is None
    assert cached["reused_step_seconds"] < cached["step_seconds"]
    assert cached["total_is_measured"]
    assert "5 steps, 2 of them reusing another" in capsys.readouterr().out
    assert video.spread_reused(50, 20) == [False] * 10 + [False, True] * 20
    with pytest.raises(ValueError, match="21 of 50 steps reuse another; valid: 0 to 20"):
        video.spread_reused(50, 21)
    with pytest.raises(SystemExit, match="leave out --video-steps"):
        benchmark.main(["--video", "--video-reused", "2", "--video-steps", "5"])


def test_train_config_keeps_the_proportion_of_full_blocks():
    half = training_config(MODELS["14b"])
    assert (half.num_layers, half.num_full_blocks) == (20, 4)
    with pytest.raises(ValueError, match="7 layers cannot keep 8 full blocks of 40"):
        training_config(MODELS["14b"], 7)


def test_degrees_of_the_14b_model():
    args = benchmark.build_parser().parse_args(["--gpus", "8"])
    assert benchmark.parallel_degrees(args, MODELS["14b"]) == [(1, 8), (2, 4), (4, 2)]
    args = benchmark.build_parser().parse_args(["--gpus", "8", "--ulysses-parallel", "2", "8"])
    assert benchmark.parallel_degrees(args, MODELS["14b"]) == [(4, 2), (1, 8)]


def test_checks_pass_and_can_fail(monkeypatch):
    small = {"width": 256, "grids": [(1, 6, 6)]}
    rows = run_checks("cpu", **small).rows
    assert len(rows) > 20
    assert all(row["passed"] for row in rows), rows
    monkeypatch.setattr(fused.EagerKernels, "update", lambda _self, x, y, gate=None: x + y)
    failed = run_checks("cpu", **small).failed
    assert any("original network" in name for name in failed)
    assert any("fp32 packed against padded" in name for name in failed)


def test_summary_is_arithmetic():
    flops = {"linear": 6e12, "attention": 2e12, "total": 8e12}
    full = dict(flops, attention=10e12, total=16e12)
    ceilings = {"matmul": 3e12, "attention": 2e12, "copy": 1e12}
    result = {"gpus": 2, "ceilings": ceilings, "paper": {"2": 1.4}, "release": {"sparse": 9.0}, "measurements": [
        {"mode": "full", "gpus": 2, "median": 9.0, "seconds": [8.0, 9.0, 10.0], "flops": full},
        {"mode": "full", "gpus": 2, "median": 8.0, "seconds": [8.0], "flops": full},
        {"mode": "sparse", "gpus": 2, "median": 4.0, "seconds": [4.0], "flops": flops},
        {"mode": "full", "gpus": 1, "median": 15.0, "seconds": [15.0], "flops": full},
        {"mode": "sparse", "gpus": 1, "median": 7.5, "seconds": [7.5], "flops": flops},
    ]}
    assert ideal_seconds(flops, ceilings, 2) == 1.5
    rows = summarise(result)
    assert rows[0]["spread"] == 1.0
    assert rows[2]["speed_up"] == 2.0
    assert rows[2]["flop_ratio"] == 2.0
    assert rows[2]["share"] == 1.5 / 4
    assert rows[2]["tflops"] == 1.0
    assert rows[2]["scaling"] == 7.5 / 8
    assert (rows[2]["paper"], rows[2]["release"]) == (1.4, None)
    assert (rows[4]["paper"], rows[4]["release"]) == (None, 9.0)
    assert rows[4]["speed_up"] == 2.0


@pytest.mark.slow
def test_two_processes_write_one_table(tmp_path, capfd):
    assert benchmark.main(["--setting", "tiny", "--gpus", "2", "--repeats", "1", "--single-gpu", "--exchange",
                           "overlapped", "fused", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "tiny_tiny_forward_2gpu.json").read_text())
    rows = [(row["mode"], row["gpus"], row["degrees"], row["exchange"]) for row in result["measurements"]]
    assert rows == [
        ("full", 1, [1, 1], None), ("full", 2, [1, 2], "overlapped"), ("full", 2, [1, 2], "fused"),
        ("sparse", 1, [1, 1], None), ("sparse", 2, [1, 2], "overlapped"), ("sparse", 2, [1, 2], "fused"),
        ("sparse", 2, [2, 1], "overlapped"),
    ]
    assert result["measurements"][4]["sent"]["ulysses"] == result["measurements"][5]["sent"]["ulysses"] > 0
    assert result["measurements"][6]["sent"]["switch"] > 0
    assert capfd.readouterr().out.count("whole run") == 1


@pytest.mark.parametrize(("arguments", "valid"), [
    (["--gpus", "8", "--model", "tiny"], "none"),
    (["--gpus", "2", "--skiparse-parallel", "4"], r"\[\(1, 2\), \(2, 1\)\]"),
])
def test_degrees_that_do_not_fit_are_refused(arguments, valid):
    with pytest.raises(ValueError, match=f"valid: {valid}"):
        benchmark.main(["--setting", "tiny", *arguments])


def test_plot_draws_every_file(tmp_path):
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib")
    with pytest.raises(FileNotFoundError, match="no .*json"):
        plot(tmp_path, tmp_path / "figure.png")
    benchmark.main(["--setting", "tiny", "--mode", "sparse", "--repeats", "1", "--output", str(tmp_path)])
    assert benchmark.main(["--plot", str(tmp_path / "figure.png"), "--output", str(tmp_path)]) == 0
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_kernel_names_are_sorted_into_kinds():
    names = {
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3i": "attention",
        "nvjet_tst_256x128_64x4_2x1_v_bz_coopA_bias_TNN": "matmul",
        "_update_norm_kernel": "elementwise",
        "ncclDevKernel_SendRecv": "communication",
        "void at::native::vectorized_gather_kernel<16, long>": "copy",
    }
    assert {name: kind_of(name) for name in names} == names


def test_random_model_has_no_zero_parameter():
    model = random_model(MODELS["tiny"], "cpu", torch.float32)
    assert all(parameter.any() and not parameter.requires_grad for parameter in model.parameters())
    assert model(*random_inputs(MODELS["tiny"], (1, 3, 2), "cpu")).std() > 0.1
