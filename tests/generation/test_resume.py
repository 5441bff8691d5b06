"""A list of videos that is stopped, gone on with, shared and changed: its files are those of an undisturbed run."""

import json
import re
import subprocess
import sys

import pytest

from ospnext_ms.__main__ import main
from ospnext_ms.generation import text_to_video
from ospnext_ms.parallel import interruption
from ospnext_ms.storage.run_lock import RunLock
from tests.support import generate_runs as runs
from tests.support.configs import changed, write_config
from tests.support.paths import ROOT

PROMPTS = ["a 3 moving left", "a bright 7", "a dim 5"]
NAMES = [f"video_{i:04d}" for i in range(len(PROMPTS))]


def write_run(folder, model_files, prompts=PROMPTS, **sections):
    """A configuration of one step to one frame, and its prompts; returns generate's options."""
    folder.mkdir(exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(prompts))
    values = changed(runs.settings(model_files, folder / "out"), sampling={"steps": 1, "guidance": 1.0},
                     video={"frames": 1})
    config = write_config(folder / "run.yaml", changed(values, **sections))
    return ["generate", "--config", str(config), "--prompt-file", str(folder / "prompts.txt")]


def mp4s(folder):
    """{name: bytes}"""
    return {path.stem: path.read_bytes() for path in (folder / "out").glob("video_*.mp4")}


def all_files(folder):
    return sorted(path.name for path in (folder / "out").iterdir())


COMPLETE = sorted(["contact_sheet.png", "grid.mp4", *(name + end for name in NAMES for end in (".mp4", ".json"))])


@pytest.fixture(scope="module")
def undisturbed(model_files, tmp_path_factory):
    """Folder of a run of all prompts, and the bytes of its videos."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(write_run(folder, model_files)) == 0
    return folder, mp4s(folder)


@pytest.fixture
def denoised(monkeypatch):
    """List of the numbers of the batches that have been denoised."""
    calls, denoise = [], text_to_video.integrate

    def watched(*arguments):
        calls.append(len(calls))
        return denoise(*arguments)

    monkeypatch.setattr(text_to_video, "integrate", watched)
    return calls


def fail_at(monkeypatch, number, error):
    """Makes denoising end with an error in batch `number`, from 1."""
    calls, denoise = [], text_to_video.integrate

    def failing(*arguments):
        calls.append(None)
        if len(calls) == number:
            raise error
        return denoise(*arguments)

    monkeypatch.setattr(text_to_video, "integrate", failing)
    return lambda: monkeypatch.setattr(text_to_video, "integrate", denoise)


def test_the_same_command_makes_the_rest(undisturbed, model_files, tmp_path, monkeypatch, capsys):
    command = write_run(tmp_path, model_files)
    mend = fail_at(monkeypatch, 2, FloatingPointError("stopped"))
    assert main(command) == 2
    assert all_files(tmp_path) == ["video_0000.json", "video_0000.mp4"]
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("video_*")}
    # What is half there is made again: an mp4 without its record, and what a kill leaves.
    (tmp_path / "out" / "video_0001.mp4").write_bytes(b"half")
    (tmp_path / "out" / ".video_0001.01234567.mp4").write_bytes(b"half")
    mend()
    capsys.readouterr()
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "1 of 3 videos are complete in" in err
    assert re.findall(r"\w+\.(?:mp4|png)", out) == [*(f"{name}.mp4" for name in NAMES), "contact_sheet.png", "grid.mp4"]
    assert all_files(tmp_path) == COMPLETE
    assert mp4s(tmp_path) == undisturbed[1]
    assert {path: path.stat().st_mtime_ns for path in first} == first
    for name in ("contact_sheet.png", "grid.mp4"):
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed[0] / "out" / name).read_bytes()


def test_nothing_is_made_twice(undisturbed, model_files, denoised, capsys):
    folder, expected = undisturbed
    assert main(write_run(folder, model_files)) == 0
    assert denoised == []
    assert "3 of 3 videos are complete" in capsys.readouterr().err
    assert mp4s(folder) == expected


def test_parts_together_are_one_run(undisturbed, model_files, tmp_path, capsys):
    command = write_run(tmp_path, model_files)
    assert main([*command, "--part", "2/2"]) == 0
    assert sorted(mp4s(tmp_path)) == ["video_0001"]
    assert "2 of 3 videos are not there yet" in capsys.readouterr().err
    assert main([*command, "--part", "1/2"]) == 0
    assert all_files(tmp_path) == COMPLETE
    assert mp4s(tmp_path) == undisturbed[1]


def test_one_video_is_made_again_alone(undisturbed, model_files, denoised, tmp_path, capsys):
    folder, expected = undisturbed
    command = write_run(folder, model_files)
    (folder / "out" / "video_0002.mp4").write_bytes(b"damaged")
    assert main([*command, "--index", "2"]) == 0
    assert main([*command, "--index", "0"]) == 0
    assert denoised == [0, 1]
    assert mp4s(folder) == expected
    assert all_files(folder) == COMPLETE
    assert main([*command, "--index", "3"]) == 2
    assert "no video has the index 3; there are 0 to 2" in capsys.readouterr().err


def test_members_of_a_batch_are_made_as_they_were(model_files, tmp_path, denoised):
    """On CPU too, the others of a batch decide a video's last digits: it is denoised with them, and written alone."""
    command = write_run(tmp_path, model_files, sampling={"steps": 1, "guidance": 1.0, "batch_size": 2})
    assert main(command) == 0
    expected = mp4s(tmp_path)
    (tmp_path / "out" / "video_0001.mp4").unlink()
    kept = (tmp_path / "out" / "video_0000.mp4").stat().st_mtime_ns
    assert main(command) == 0
    assert mp4s(tmp_path) == expected
    assert (tmp_path / "out" / "video_0000.mp4").stat().st_mtime_ns == kept
    # Two batches, and the first again.
    assert denoised == [0, 1, 2]


@pytest.mark.parametrize(("options", "lines"), [
    (["--set", "sampling.steps=2"], ["sampling.steps: 1 then, 2 now (video_0000 and 2 more)"]),
    (["--seed", "8", "--set", "video.crf=20"], ["seed: 7 then, 8 now (video_0000 and 2 more)",
                                                "video.crf: 18 then, 20 now (video_0000 and 2 more)"]),
    (["--set", "prompts.prompt_file=null", "--set", "prompts.prompt=other"],
     ['prompt: "a 3 moving left" then, "other" now (video_0000)']),
])
def test_other_settings_are_refused(undisturbed, model_files, denoised, capsys, options, lines):
    folder, expected = undisturbed
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    command = write_run(folder, model_files)
    command = command[:3] if "prompts.prompt=other" in options else command
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err
    assert "holds videos that were made otherwise" in error
    assert "--overwrite" in error
    for line in lines:
        assert line in error.split("\n")
    assert len(error.strip().split("\n")) == 1 + len(lines)
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").iterdir()} == before
    assert denoised == []


def test_other_weights_are_refused_wherever_they_lie(undisturbed, model_files, tmp_path, capsys):
    folder, expected = undisturbed
    command = write_run(folder, model_files)
    same, other = tmp_path / "same.safetensors", tmp_path / "other.safetensors"
    data = (model_files / "dit.safetensors").read_bytes()
    same.write_bytes(data)
    other.write_bytes(data[:-4] + b"\x01\x02\x03\x3c")
    assert main([*command, "--set", f"model.dit.checkpoint={same}"]) == 0
    capsys.readouterr()
    assert main([*command, "--set", f"model.dit.checkpoint={other}"]) == 2
    error = capsys.readouterr().err.strip().split("\n")
    assert len(error) == 2
    assert error[1].startswith("contents of model.dit.checkpoint: ")
    assert mp4s(folder) == expected


def test_overwriting_replaces_what_was_made_otherwise(model_files, tmp_path, denoised):
    command = write_run(tmp_path, model_files, PROMPTS[:2])
    assert main(command) == 0
    first = mp4s(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join([PROMPTS[0], "another one"]))
    assert main([*command, "--overwrite"]) == 0
    assert denoised == [0, 1, 2]
    second = mp4s(tmp_path)
    assert second["video_0000"] == first["video_0000"]
    assert second["video_0001"] != first["video_0001"]
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:1]))
    assert main([*command, "--overwrite", "--seed", "1"]) == 0
    # The grid showed videos that are of another run now.
    assert "grid.mp4" not in all_files(tmp_path)
    assert json.loads((tmp_path / "out" / "video_0000.json").read_text())["seed"] == 1


def test_a_signal_ends_a_run_with_a_line(model_files, tmp_path, monkeypatch, capsys):
    """Complete videos stay; overviews, of an earlier run here, would show what is not there any more."""
    command = write_run(tmp_path, model_files, sampling={"steps": 2, "guidance": 1.0})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "grid.mp4").touch()
    begun, denoise = [], text_to_video.integrate

    def signalled(velocity, sampler, sample, on_step):
        begun.append(None)
        if len(begun) == 2:
            noted[0].asked = 15
        return denoise(velocity, sampler, sample, on_step)

    noted, enter = [], interruption.Interruption.__enter__

    def entered(self):
        noted.append(self)
        return enter(self)

    monkeypatch.setattr(interruption.Interruption, "__enter__", entered)
    monkeypatch.setattr(text_to_video, "integrate", signalled)
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 143
    assert re.search(r"SIGTERM: 1 of 3 videos are complete in .*; the same command goes on from there\n$",
                     capsys.readouterr().err)
    assert all_files(tmp_path) == ["video_0000.json", "video_0000.mp4"]


def test_a_second_run_in_the_folder_is_refused(model_files, tmp_path, capsys):
    command = write_run(tmp_path, model_files)
    hold = "import sys; from ospnext_ms.storage.run_lock import RunLock\n" \
           "lock = RunLock(sys.argv[1]); print('held', flush=True); input()"
    first = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "out")], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert first.stdout.readline() == "held\n"
    try:
        assert main(command) == 2
        assert f"is in use by process {first.pid} on" in capsys.readouterr().err
        assert mp4s(tmp_path) == {}
    finally:
        first.kill()
        first.wait()
    RunLock(tmp_path / "out").release()
