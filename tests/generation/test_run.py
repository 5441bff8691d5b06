"""`generate` from its options to the files it leaves."""

import json
import re

import cv2
import mindspore
import numpy as np
import pytest

import ospnext_ms
from ospnext_ms.__main__ import main
from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import read_section
from ospnext_ms.data.video import read_video, write_mp4
from ospnext_ms.generation import text_to_video
from ospnext_ms.generation.jobs import file_name
from tests.support.configs import write_config


@pytest.fixture
def config_file(mapping, tmp_path):
    return str(write_config(tmp_path / "run.yaml", mapping))


def files_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_one_prompt(config_file, tmp_path, capfd):
    output = tmp_path / "elsewhere"
    assert main(["generate", "--config", config_file, "--set", "sampling.steps=1", "--prompt", "two: 猫", "--seed", "3",
                 "--output", str(output)]) == 0
    assert files_in(output) == ["contact_sheet.png", "video_0000.json", "video_0000.mp4"]
    assert read_video(output / "video_0000.mp4").shape == (5, 32, 48, 3)
    assert cv2.imread(str(output / "contact_sheet.png")).shape == (22 + 32 + 4, 5 * (48 + 4) + 4, 3)
    out, err = capfd.readouterr()
    assert "denoising" in err
    assert not re.search("ERROR|WARNING", err)
    written = ("video_0000.mp4", "video_0000.json", "contact_sheet.png")
    assert out.split("\n") == [*(str(output / name) for name in written), ""]

    record = json.loads((output / "video_0000.json").read_text())
    assert (record["prompt"], record["negative_prompt"], record["seed"]) == ("two: 猫", "grey", 3)
    assert record["versions"]["mindspore"] == mindspore.__version__
    assert record["versions"]["ospnext_ms"] == ospnext_ms.__version__
    assert (record["device"], record["dtype"]) == ("CPU", "fp32")
    assert record["seconds"]["denoising"] > 0
    # What stands beside a video is enough to make it again.
    again = read_section(GenerateConfig, record["configuration"])
    assert (again.sampling.steps, again.sampling.seed, again.prompts.prompt) == (1, 3, "two: 猫")
    assert again.output_dir == str(output)


def test_several_prompts_named_for_vbench(config_file, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a/b\nseven\n")
    assert main(["generate", "--config", config_file, "--set", "sampling.steps=1", "--set", "output_naming=prompt",
                 "--set", "sampling.guidance=1", "--prompt-file", str(prompts)]) == 0
    output, records = tmp_path / "output", tmp_path / "output_records"
    a_b, seven = file_name("a/b", 0), "seven-0"
    # VBench lists the folder and takes the first name's suffix for that of all.
    assert files_in(output) == sorted([f"{a_b}.mp4", f"{seven}.mp4"])
    assert files_in(records) == sorted([f"{a_b}.json", f"{seven}.json", "contact_sheet.png", "grid.mp4"])
    assert read_video(records / "grid.mp4").shape == (5, 32, 96, 3)
    assert cv2.imread(str(records / "contact_sheet.png")).shape[0] == 2 * (22 + 32 + 4)
    record = json.loads((records / "seven-0.json").read_text())
    assert (record["prompt"], record["index"], record["negative_prompt"]) == ("seven", 1, None)


def test_each_video_is_complete_before_the_next_one_is_denoised(config_file, tmp_path, monkeypatch):
    prompts, output, there = tmp_path / "prompts.txt", tmp_path / "output", []
    prompts.write_text("one\ntwo\nthree\n")
    denoise = text_to_video.integrate

    def watched(*arguments):
        there.append([name for name in files_in(output) if not name.startswith(".")] if output.exists() else [])
        return denoise(*arguments)

    monkeypatch.setattr(text_to_video, "integrate", watched)
    assert main(["generate", "--config", config_file, "--set", "sampling.steps=1", "--prompt-file", str(prompts)]) == 0
    of_video = [[f"video_000{i}.json", f"video_000{i}.mp4"] for i in range(3)]
    assert there == [[], of_video[0], of_video[0] + of_video[1]]


def test_a_failure_while_a_video_is_written_leaves_no_file(config_file, tmp_path, monkeypatch, capsys):
    def write_half(path, frames, fps, crf):
        def broken():
            yield from frames[:2]
            raise OSError("no space left")

        write_mp4(path, broken(), fps, crf)

    monkeypatch.setattr(text_to_video, "write_mp4", write_half)
    assert main(["generate", "--config", config_file, "--set", "sampling.steps=1"]) == 2
    assert capsys.readouterr().err.endswith("error: no space left\n")
    assert files_in(tmp_path / "output") == []


def user_error(arguments, capsys, tmp_path):
    """The message of a command that has to fail, before it has written anything."""
    before = sorted(tmp_path.rglob("*"))
    assert main(["generate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    assert sorted(tmp_path.rglob("*")) == before
    return captured.err


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--set", "sampling.stpes=3"], "did you mean steps?"),
    (["--set", "video.frames=16"], "nearest valid: 13 and 17"),
    (["--prompt", " "], "the prompt ' ' is empty"),
    (["--prompt-file", "nowhere.txt"], "no prompt file nowhere.txt"),
    (["--seed", "-2"], "seed is -2"),
    (["--set", "sampling.starting_noise=nowhere.npy"], "no file nowhere.npy"),
    (["--set", "model.dit.checkpoint=nowhere"], "model.dit.checkpoint: no checkpoint at nowhere"),
    (["--set", "model.text_encoder.tokenizer=nowhere"], "no folder nowhere"),
    (["--set", "model.dit.ffn_dim=128"], "model.dit: "),
    (["--set", "context.dtype=bf16"], "no matrix products in bf16"),
])
def test_user_errors(config_file, tmp_path, capsys, arguments, expected):
    assert expected in user_error(["--config", config_file, *arguments], capsys, tmp_path)


def test_a_configuration_that_is_not_there(tmp_path, capsys):
    assert "no configuration file nowhere.yaml" in user_error(["--config", "nowhere.yaml"], capsys, tmp_path)


def test_processes_have_to_fit_the_degrees(config_file, tmp_path, capsys, monkeypatch):
    def error(workers, *changes):
        monkeypatch.setenv("MS_WORKER_NUM", str(workers))
        options = [word for change in changes for word in ("--set", f"parallel_config.{change}")]
        return user_error(["--config", config_file, *options], capsys, tmp_path)

    assert "1 processes run" in error(1, "skiparse_parallel=2")
    assert "skiparse_parallel is 3; valid for sparse_ratio 2: [1, 2, 4]" in error(3, "skiparse_parallel=3")
    assert "4 does not divide the 2 heads; valid: 1x1, 1x2, 2x1" in error(4, "ulysses_parallel=4")
    assert "a multiple of 2" in error(3, "ulysses_parallel=2")
    assert "pairs of groups: a multiple of 4" in error(2, "ulysses_parallel=2", "split_guidance=true")
    assert "parameter_shard is 2; generation shards weights among the 1 processes" in error(2, "parameter_shard=2")
    assert "split_guidance has nothing to split" in user_error(
        ["--config", config_file, "--set", "parallel_config.split_guidance=true", "--set", "sampling.guidance=1"],
        capsys, tmp_path)
    assert "nowhere" in user_error(["--config", config_file, "--prompt-file", "nowhere"], capsys, tmp_path)


def test_noise_from_a_file(config_file, tmp_path):
    np.save(tmp_path / "noise.npy", np.random.default_rng([7, 0]).standard_normal((16, 2, 4, 6)))
    assert main(["generate", "--config", config_file, "--set", "sampling.steps=1", "--set", "sampling.guidance=1",
                 "--set", f"sampling.starting_noise={tmp_path / 'noise.npy'}"]) == 0
    record = json.loads((tmp_path / "output" / "video_0000.json").read_text())
    assert record["seed"] is None
    assert record["configuration"]["sampling"]["starting_noise"] == str(tmp_path / "noise.npy")
