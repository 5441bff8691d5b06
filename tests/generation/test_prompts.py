"""What a run is asked to make: prompts, names, files and noise."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ospnext_ms.generation.checks import check_files
from ospnext_ms.generation.noise import load_starting_noise, starting_noise
from ospnext_ms.generation.prompts import list_videos, prompt_name, read_prompts


def from_file(configure, tmp_path, text, **sections):
    path = tmp_path / "prompts.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return configure(prompts={"prompt": None, "prompt_file": str(path)} | sections.pop("prompts", {}), **sections)


def test_one_prompt(configure):
    video, = list_videos(configure(prompts={"prompt": "  a cat \n"}))
    assert (video.prompt, video.index, video.stem) == ("a cat", 0, "video_0000")


def test_a_prompt_file_has_a_prompt_a_line(configure, tmp_path):
    config = from_file(configure, tmp_path, "\ufeffa cat\r\n\n  &nbsp; \n猫 #1\n", prompts={"samples_per_prompt": 2})
    videos = list_videos(config)
    assert [(video.prompt, video.stem) for video in videos] == [
        ("a cat", "video_0000"), ("a cat", "video_0001"), ("猫 #1", "video_0002"), ("猫 #1", "video_0003")]
    assert [video.index for video in videos] == [0, 1, 2, 3]


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
    stems = [video.stem for video in list_videos(config)]
    assert stems == ["a cat-0", "a cat-1", "a dog, close-up-0", "a dog, close-up-1"]


@pytest.mark.parametrize(("prompt", "expected"), [
    ("a cat", "a cat-0"),
    ("../../etc/passwd", "_._.._etc_passwd-0"),
    ("/a\\b", "_a_b-0"),
    (".hidden", "_hidden-0"),
    ("..", "_.-0"),
    ("tab\tnul\0", "tab_nul_-0"),
    ("猫が走る", "猫が走る-0"),
    ("x" * 500, "x" * 228 + "-0"),
    ("猫" * 200, "猫" * 76 + "-0"),
])
def test_names_are_file_names(prompt, expected, tmp_path):
    name = prompt_name(prompt, 0)
    assert name == expected
    path = tmp_path / f".{name}.01234567.json"
    path.touch()
    assert path.parent == tmp_path


def test_videos_of_one_name_are_an_error(configure, tmp_path):
    with pytest.raises(ValueError, match=r"several videos would be named a cat-0\.mp4"):
        list_videos(from_file(configure, tmp_path, "a cat\nA Cat\n", output_naming="prompt"))


@pytest.mark.parametrize("prompt", ["", "  ", "&nbsp;"])
def test_an_empty_prompt_is_an_error(configure, prompt):
    with pytest.raises(ValueError, match="is empty"):
        list_videos(configure(prompts={"prompt": prompt}))


@pytest.mark.parametrize(("text", "expected"), [("", "holds no prompt"), (" \n\n", "holds no prompt"),
                                                (b"\xff\xfe", "is not UTF-8")])
def test_prompt_files_without_prompts(configure, tmp_path, text, expected):
    with pytest.raises(ValueError, match=expected):
        list_videos(from_file(configure, tmp_path, text))


def test_no_prompt_file(configure):
    with pytest.raises(FileNotFoundError, match=r"no prompt file nowhere\.txt"):
        list_videos(configure(prompts={"prompt": None, "prompt_file": "nowhere.txt"}))


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
