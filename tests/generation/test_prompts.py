"""What a run is asked to make: prompts, names, files and noise."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ospnext_ms.generation import prompts
from ospnext_ms.generation.checks import check_files
from ospnext_ms.generation.noise import load_starting_noise, starting_noise
from ospnext_ms.generation.prompts import Line, list_jobs, output_folder, read_lines, read_prompts


def from_file(configure, tmp_path, text, **sections):
    path = tmp_path / "prompts.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return configure(prompts={"prompt": None, "prompt_file": str(path)} | sections.pop("prompts", {}), **sections)


def jobs_of(config):
    return list_jobs(config)[0]


def test_one_prompt(configure):
    job, = jobs_of(configure(prompts={"prompt": "  a cat \n"}))
    assert (job.prompt, job.index, job.name) == ("a cat", 0, "video_0000")
    assert (job.seed, job.negative_prompt) == (7, "grey")
    assert jobs_of(configure(sampling={"guidance": 1.0}))[0].negative_prompt is None


def test_a_prompt_file_has_a_prompt_a_line(configure, tmp_path):
    config = from_file(configure, tmp_path, "\ufeffa cat\r\n\n  &nbsp; \n猫 #1\n", prompts={"samples_per_prompt": 2})
    jobs = jobs_of(config)
    assert [(job.prompt, job.name) for job in jobs] == [
        ("a cat", "video_0000"), ("a cat", "video_0001"), ("猫 #1", "video_0002"), ("猫 #1", "video_0003")]
    assert [job.index for job in jobs] == [0, 1, 2, 3]


def test_prompts_of_a_file(tmp_path):
    (tmp_path / "p.txt").write_text("a 3 moving left\n\n  \n a 5 \n")
    assert read_prompts(tmp_path / "p.txt") == ["a 3 moving left", "a 5"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(tmp_path / "empty.txt")
    with pytest.raises(FileNotFoundError, match=r"nothing.txt"):
        read_prompts(tmp_path / "nothing.txt")


def test_names_for_vbench(configure, tmp_path):
    config = from_file(configure, tmp_path, "a cat\na dog, close-up\n", prompts={"samples_per_prompt": 2},
                       output_naming="prompt")
    assert [job.name for job in jobs_of(config)] == ["a cat-0", "a cat-1", "a dog, close-up-0", "a dog, close-up-1"]


@pytest.mark.parametrize("ignores_case", [True, False])
def test_names_that_differ_in_case_only(configure, tmp_path, monkeypatch, ignores_case):
    monkeypatch.setattr(prompts, "ignores_case", lambda folder: ignores_case)
    config = from_file(configure, tmp_path, "a cat\nA Cat\n", output_naming="prompt")
    first, second = (job.name for job in jobs_of(config))
    assert first == "a cat-0"
    assert (second == "A Cat-0") != ignores_case
    assert second.startswith("A Cat-0")


def test_results_lie_beside_videos_that_are_named_after_prompts(configure, tmp_path):
    plain, named = (output_folder(configure(output_naming=naming)) for naming in ("index", "prompt"))
    assert plain.records == plain.videos == named.videos
    assert named.records == tmp_path / "output_records"


def test_a_line_ends_at_a_line_feed_only(tmp_path):
    text = "a cat\u2028and\u0085a\vdog\fnow\x1c.\r\na 3\n"
    (tmp_path / "p.txt").write_bytes(text.encode())
    assert read_prompts(tmp_path / "p.txt") == ["a cat\u2028and\u0085a\vdog\fnow\x1c.", "a 3"]


def test_json_lines(configure, tmp_path):
    text = """
{"prompt": "a cat walks, in the evening light", "name": "a cat"}
{"prompt": "a dog", "seed": 5, "index": 40, "negative_prompt": "blue"}

{"prompt": "a\\u2028bird"}
"""
    jobs = jobs_of(from_file(configure, tmp_path, text, prompts={"samples_per_prompt": 2}))
    told = [(job.prompt, job.name, job.seed, job.index, job.negative_prompt) for job in jobs]
    assert told[0] == ("a cat walks, in the evening light", "a cat-0", 7, 0, "grey")
    assert told[1] == ("a cat walks, in the evening light", "a cat-1", 7, 1, "grey")
    assert told[2:4] == [("a dog", "video_0040", 5, 40, "blue"), ("a dog", "video_0041", 5, 41, "blue")]
    assert told[4:] == [("a\u2028bird", "video_0004", 7, 4, "grey"), ("a\u2028bird", "video_0005", 7, 5, "grey")]
    config = from_file(configure, tmp_path, text, output_naming="prompt", prompts={"samples_per_prompt": 1})
    assert [job.name for job in jobs_of(config)][:2] == ["a cat-0", "a dog-0"]


def test_lines_of_one_name_are_counted(configure, tmp_path):
    text = '{"prompt": "a long cat", "name": "a cat", "seed": 1}\n{"prompt": "a cat", "seed": 2}\n'
    assert [job.name for job in jobs_of(from_file(configure, tmp_path, text, output_naming="prompt"))] == [
        "a cat-0", "a cat-1"]
    text = '{"prompt": "a", "name": "cat"}\n{"prompt": "b", "name": "cat"}\n'
    with pytest.raises(ValueError, match=r"several videos would be named cat\.mp4"):
        list_jobs(from_file(configure, tmp_path, text, output_naming="index"))


def test_repeated_lines_are_made_once(configure, tmp_path):
    jobs, repeated = list_jobs(from_file(configure, tmp_path, "a cat\na dog\n a cat\na cat \nA cat\n"))
    assert [(job.prompt, job.index) for job in jobs] == [("a cat", 0), ("a dog", 1), ("A cat", 2)]
    assert repeated == 2
    text = '{"prompt": "a", "seed": 1}\n{"prompt": "a", "seed": 2}\n'
    jobs, repeated = list_jobs(from_file(configure, tmp_path, text))
    assert [job.seed for job in jobs] == [1, 2]
    assert repeated == 0


@pytest.mark.parametrize(("line", "expected"), [
    ("a dog", "not JSON"), ("[1]", "is no JSON object"), ('{"promt": "x"}', "unknown key 'promt'; valid: prompt, name"),
    ("{}", "the prompt is missing"), ('{"prompt": " "}', "the prompt is empty"), ('{"prompt": 3}', "expected a text"),
    ('{"prompt": "x", "seed": -1}', "seed is -1"), ('{"prompt": "x", "seed": true}', "expected a number"),
    ('{"prompt": "x", "seed": "1"}', "expected a number"), ('{"prompt": "x", "name": ""}', "the name is empty"),
    ('{"prompt": "x", "prompt": "y"}', "given twice"),
])
def test_json_lines_that_cannot_be_read(tmp_path, line, expected):
    path = tmp_path / "p.txt"
    path.write_text('{"prompt": "a cat"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"p\.txt, line 3: .*{expected}"):
        read_lines(path)


def test_a_file_is_of_json_lines_by_its_name_or_its_first_line(tmp_path):
    (tmp_path / "p.jsonl").write_text("a cat\n")
    with pytest.raises(ValueError, match="line 1: not JSON"):
        read_lines(tmp_path / "p.jsonl")
    (tmp_path / "p.txt").write_text('{a cat}\n{"prompt": "x"}\n')
    assert read_lines(tmp_path / "p.txt") == [Line("{a cat}"), Line('{"prompt": "x"}')]


def test_what_is_given_and_not_used_is_an_error(configure, tmp_path):
    text = '{"prompt": "a", "negative_prompt": "b"}\n'
    with pytest.raises(ValueError, match="guidance is 1, which is off"):
        list_jobs(from_file(configure, tmp_path, text, sampling={"guidance": 1.0}))
    with pytest.raises(ValueError, match="gives more than prompts"):
        read_prompts(tmp_path / "prompts.txt")
    text = '{"prompt": "a", "seed": 3}\n'
    with pytest.raises(ValueError, match=r"the noise is that of sampling\.starting_noise, noise\.npy"):
        list_jobs(from_file(configure, tmp_path, text, sampling={"starting_noise": "noise.npy"}))


@pytest.mark.parametrize("prompt", ["", "  ", "&nbsp;"])
def test_an_empty_prompt_is_an_error(configure, prompt):
    with pytest.raises(ValueError, match="is empty"):
        list_jobs(configure(prompts={"prompt": prompt}))


@pytest.mark.parametrize(("text", "expected"), [("", "holds no prompt"), (" \n\n", "holds no prompt"),
                                                (b"\xff\xfe", "is not UTF-8")])
def test_prompt_files_without_prompts(configure, tmp_path, text, expected):
    with pytest.raises(ValueError, match=expected):
        list_jobs(from_file(configure, tmp_path, text))


def test_no_prompt_file(configure):
    with pytest.raises(FileNotFoundError, match=r"no prompt file nowhere\.txt"):
        list_jobs(configure(prompts={"prompt": None, "prompt_file": "nowhere.txt"}))


def test_noise_depends_on_seed_and_index_only():
    shape = (16, 2, 4, 6)
    noise = starting_noise(shape, 7, 3)
    assert (noise.shape, noise.dtype) == (shape, np.float32)
    assert (starting_noise(shape, 7, 3) == noise).all()
    others = [starting_noise(shape, 7, 4), starting_noise(shape, 8, 3), starting_noise(shape, 3, 7)]
    assert all(abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.15 for other in others)
    assert abs(noise.mean()) < 0.1
    assert abs(noise.std() - 1) < 0.1


def test_noise_of_a_seed_never_changes():
    expected = [1.1176220178604126, -1.3871248960494995, -0.4265716075897217, -0.8035872578620911]
    assert starting_noise((4,), 0, 0).tolist() == expected


def test_noise_from_a_file(configure, tmp_path):
    path = tmp_path / "noise.npy"
    noise = np.random.default_rng(0).standard_normal((3, 16, 2, 4, 6))
    np.save(path, noise)
    config = configure(sampling={"starting_noise": str(path)})
    np.testing.assert_array_equal(load_starting_noise(config, 3), noise)
    np.save(path, noise[1].astype(np.float16))
    np.testing.assert_array_equal(load_starting_noise(config, 2), np.stack([noise[1].astype(np.float16)] * 2))
    noise[2, 0, 0, 0, 0] = np.nan
    np.save(path, noise)
    with pytest.raises(ValueError, match=r"holds numbers that are not finite"):
        load_starting_noise(config, 3)
    assert load_starting_noise(configure(sampling={"starting_noise": None}), 2) is None


@pytest.mark.parametrize(("array", "expected"), [
    (np.zeros((2, 16, 2, 4, 6)), r"float64 \(2, 16, 2, 4, 6\); expected floats \(16, 2, 4, 6\), or \(3, 16, 2, 4, 6\)"),
    (np.zeros((16, 2, 6, 4)), "holds float64"),
    (np.zeros((16, 2, 4, 6), int), "holds int64"),
    (np.array([None]), "is not a .npy file of numbers"),
])
def test_noise_that_does_not_fit(configure, tmp_path, array, expected):
    path = tmp_path / "noise.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(ValueError, match=expected):
        load_starting_noise(configure(sampling={"starting_noise": str(path)}), 3)


@pytest.mark.parametrize("header", ["{'descr': '<f4', 'shape': (", "{'descr': [", "{'descr': 7, 'shape': 3}", "(", ""])
def test_noise_with_a_damaged_header(configure, tmp_path, header):
    path, text = tmp_path / "noise.npy", header.encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64))
    with pytest.raises(ValueError, match=r"noise\.npy is not a \.npy file of numbers"):
        load_starting_noise(configure(sampling={"starting_noise": str(path)}), 3)


def test_noise_from_something_else(configure, tmp_path):
    path = tmp_path / "noise.npy"
    config = configure(sampling={"starting_noise": str(path)})
    with pytest.raises(FileNotFoundError, match="no file"):
        load_starting_noise(config, 1)
    for content in (b"", b"text", b"\x93NUMPY"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a .npy file"):
            load_starting_noise(config, 1)
    with open(path, "wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(ValueError, match="archive"):
        load_starting_noise(config, 1)


def test_files_of_a_run_that_can_start_are_checked_without_writing_any(configure):
    config = configure()
    check_files(config)
    assert list(Path(config.output_dir).glob("*")) == []


@pytest.mark.parametrize("network", ["dit", "vae", "text_encoder"])
def test_a_checkpoint_that_is_not_there(configure, mapping, network):
    mapping["model"][network]["checkpoint"] = "nowhere.safetensors"
    with pytest.raises(FileNotFoundError, match=rf"model\.{network}\.checkpoint: no checkpoint at nowhere"):
        check_files(configure())


def test_a_truncated_checkpoint(configure, mapping, model_files, tmp_path):
    path = tmp_path / "dit.safetensors"
    path.write_bytes((model_files / "dit.safetensors").read_bytes()[:-100])
    mapping["model"]["dit"]["checkpoint"] = str(path)
    with pytest.raises(ValueError, match=r"model\.dit\.checkpoint: .* is truncated"):
        check_files(configure())


def test_no_tokenizer(configure, mapping):
    mapping["model"]["text_encoder"]["tokenizer"] = "nowhere"
    with pytest.raises(FileNotFoundError, match=r"model\.text_encoder\.tokenizer: no folder nowhere"):
        check_files(configure())


def test_an_output_folder_that_is_a_file(configure, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        check_files(configure(output_dir=str(tmp_path / "file" / "output")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_that_cannot_be_written_to(configure, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ValueError, match="cannot be written to"):
        check_files(configure(output_dir=str(tmp_path / "closed" / "output")))


def test_checks_need_no_mindspore():
    code = ("import sys, ospnext_ms.generation.run, ospnext_ms.planning.machine, ospnext_ms.__main__; "
            "sys.exit('mindspore' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
