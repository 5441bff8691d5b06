"""`vbench generate`: which jobs, into which folder, and that they are the videos of `generate`."""

import json

import pytest

from ospnext_ms.__main__ import main
from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import read_section
from ospnext_ms.evaluation.vbench import generate
from ospnext_ms.evaluation.vbench.generate import jobs_of
from tests.support import generate_runs as runs
from tests.support.configs import changed, write_config

SUITE = [{"prompt_en": "a still lake", "dimension": ["temporal_flickering"]},
         {"prompt_en": "a cat", "dimension": ["scene", "background_consistency"]},
         {"prompt_en": "A cat", "dimension": ["scene"]},
         {"prompt_en": "a cat", "dimension": ["color"]}]


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "suite.json"
    path.write_text(json.dumps(SUITE))
    return path


def config_of(output, **sections):
    return read_section(GenerateConfig, changed(runs.settings("nowhere", output), **sections))


def test_jobs(suite, tmp_path):
    augmented = tmp_path / "augmented.txt"
    augmented.write_text("a lake that lies still\na cat on a mat\nA cat at sea\na cat in red\n")
    jobs = jobs_of(config_of(tmp_path), suite, augmented)
    assert len(jobs) == len({job.name for job in jobs}) == 15
    assert [(job.name, job.prompt, job.seed, job.index) for job in jobs[5:7]] == [
        ("a cat-0", "a cat on a mat", 8, 0), ("a cat-1", "a cat on a mat", 11, 0)]
    assert jobs[5].negative_prompt == "grey"
    assert jobs[5].about == {"vbench": {"prompt": "a cat", "sample": 0,
                                        "dimensions": ["scene", "background_consistency", "color"]}}
    unguided = jobs_of(config_of(tmp_path, sampling={"guidance": 1.0}), suite)
    assert (unguided[5].prompt, unguided[5].negative_prompt) == ("a cat", None)


def test_lines_in_another_order_are_noticed(suite, tmp_path, capsys):
    augmented = tmp_path / "augmented.txt"
    augmented.write_text("A cat at sea\na lake that lies still\na dog\n")
    jobs_of(config_of(tmp_path), suite, augmented)
    assert "warning: 1 of 3 augmented prompts have no word of their short prompt ('a still lake' has 'A cat at sea')" \
        in capsys.readouterr().err


def test_a_file_system_that_ignores_case(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "ignores_case", lambda folder: True)
    with pytest.raises(ValueError, match="upper and lower case are the same to the file system"):
        jobs_of(config_of(tmp_path), suite)
    assert jobs_of(config_of(tmp_path), suite, dimensions=["color"])


def test_videos_alone_in_their_folder_and_the_same_command_goes_on(suite, tmp_path, model_files, capsys):
    values = changed(runs.settings(model_files, tmp_path / "out"), sampling={"steps": 1, "guidance": 1.0})
    config = str(write_config(tmp_path / "run.yaml", values))
    command = ["vbench", "generate", "--config", config, "--suite", str(suite), "--seed", "666", "--samples", "2"]
    assert main([*command, "--missing"]) == 1
    names = [f"{prompt}-{i}.mp4" for prompt in ("a still lake", "a cat", "A cat") for i in range(2)]
    assert capsys.readouterr().out.splitlines() == names
    assert main([*command, "--part", "1/2"]) == 0
    assert main([*command, "--missing"]) == 1
    capsys.readouterr()
    assert main(command) == 0
    assert "3 of 6 videos are complete" in capsys.readouterr().err
    assert main([*command, "--missing"]) == 0
    videos = {path.name: path.read_bytes() for path in (tmp_path / "out" / "videos").iterdir()}
    assert videos.keys() == set(names)
    record = json.loads((tmp_path / "out" / "records" / "A cat-1.json").read_text())
    assert (record["seed"], record["index"], record["prompt"]) == (666 + 3 + 2, 0, "A cat")
    assert record["vbench"] == {"prompt": "A cat", "sample": 1, "dimensions": ["scene"]}
    alone = ["generate", "--config", config, "--prompt", "A cat", "--seed", "671", "--output", str(tmp_path / "alone")]
    assert main(alone) == 0
    assert (tmp_path / "alone" / "video_0000.mp4").read_bytes() == videos["A cat-1.mp4"]


@pytest.mark.parametrize("samples", ["0", "-1", "five"])
def test_numbers_of_samples(samples, suite, capsys):
    with pytest.raises(SystemExit):
        main(["vbench", "generate", "--config", "x", "--suite", str(suite), "--samples", samples])
    assert f"'{samples}' is not a number of videos" in capsys.readouterr().err or samples == "-1"
