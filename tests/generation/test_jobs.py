"""Names of files, and the folder in which jobs become files."""

import json

import pytest

from ospnext_ms.generation.folder import Folder, ignores_case, refusal
from ospnext_ms.generation.jobs import Job, batches_of, file_name, told_apart
from ospnext_ms.storage.files import remove_leftovers


@pytest.mark.parametrize(("text", "expected"), [
    ("a cat", "a cat-0"),
    ("a dog, close-up", "a dog, close-up-0"),
    ("猫が走る", "猫が走る-0"),
    ("../../etc/passwd", "_._.._etc_passwd~3754d6cb-0"),
    ("/a\\b", "_a_b~8d1b8c42-0"),
    (".hidden", "_hidden~16924190-0"),
    ("..", "_.~5ec1f7e7-0"),
    ("tab\tnul\0", "tab_nul_~becc7257-0"),
    ("x" * 500, "x" * 219 + "~c38c2bf3-0"),
    ("猫" * 200, "猫" * 73 + "~0255701a-0"),
])
def test_names_are_file_names(text, expected, tmp_path):
    name = file_name(text, 0)
    assert name == expected
    path = tmp_path / f".{name}.01234567.json"
    path.touch()
    assert path.parent == tmp_path


def test_no_two_texts_get_one_name():
    texts = ["a/b", "a_b", "a\\b", "a\tb", ".a", "_a", *("x" * 400 + end for end in ("", "y", "yy")), "a cat", "A cat"]
    assert len({file_name(text, 0) for text in texts}) == len(texts)
    assert file_name("a/b") == file_name("a/b", 3)[:-2]


def test_names_that_differ_in_case_only():
    names = ["a fantasy landscape-0", "A fantasy landscape-0", "other", "A FANTASY landscape-0"]
    apart = told_apart(names)
    assert apart[0] == names[0]
    assert apart[2] == "other"
    assert len({name.casefold() for name in apart}) == 4
    assert all(name.startswith(given) for name, given in zip(apart, names, strict=True))


def test_a_file_system_is_asked_about_case(tmp_path):
    (tmp_path / "Name").touch()
    assert ignores_case(tmp_path / "new" / "folder") == (tmp_path / "nAME").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Name"]


def test_batches_are_cut_from_the_start():
    assert batches_of(list(range(5)), 2) == [[0, 1], [2, 3], [4]]


JOB = Job("a cat", "video_0000", 3)
RECORD = {"prompt": "a cat", "configuration": {}}


def made(folder, job=JOB):
    folder.videos.mkdir(exist_ok=True)
    folder.video(job).write_bytes(b"a video")
    folder.finish(job, RECORD)
    return folder


def test_a_video_is_complete_with_its_record(tmp_path):
    folder = made(Folder(tmp_path / "videos", tmp_path / "records"))
    assert folder.missing([JOB]) == []
    assert [path.name for path in folder.videos.iterdir()] == ["video_0000.mp4"]
    record = json.loads(folder.record(JOB).read_text())
    assert record["video"]["bytes"] == 7
    assert record["prompt"] == "a cat"


@pytest.mark.parametrize("damage", [
    lambda folder: folder.video(JOB).unlink(),
    lambda folder: folder.video(JOB).write_bytes(b"a vid"),
    lambda folder: folder.record(JOB).unlink(),
    lambda folder: folder.record(JOB).write_text("{"),
    lambda folder: folder.record(JOB).write_text("[]"),
    lambda folder: folder.begin(JOB),
])
def test_half_of_a_video_is_none(tmp_path, damage):
    folder = made(Folder(tmp_path))
    damage(folder)
    assert folder.missing([JOB]) == [JOB]


def test_leftovers_are_those_of_the_own_files(tmp_path):
    keep = ["video_0000.mp4", ".video_0001.01234567.mp4", ".video_0000.0123456.mp4", ".other.mp4", ".run.lock"]
    for name in [*keep, ".video_0000.01234567.mp4", ".video_0000.89abcdef.json", ".contact_sheet.01234567.png"]:
        (tmp_path / name).touch()
    folder = Folder(tmp_path)
    folder.remove_leftovers([JOB], overviews=False)
    assert {path.name for path in tmp_path.iterdir()} == {*keep, ".contact_sheet.01234567.png"}
    folder.remove_leftovers([JOB], overviews=True)
    assert {path.name for path in tmp_path.iterdir()} == {*keep}
    remove_leftovers([tmp_path / "nowhere" / "x.mp4"])


def test_a_refusal_names_each_difference_once(tmp_path):
    steps = "sampling.steps: 2 then, 1 now"
    text = refusal(Folder(tmp_path), {"a": [steps, "seed: 1 then, 2 now"], "b": [steps]}, {"c": [steps]})
    assert text.split("\n")[1:] == [f"{steps} (a and 2 more)", "seed: 1 then, 2 now (a)"]
    assert str(tmp_path) in text
    assert "--overwrite" in text
    many = refusal(Folder(tmp_path), {"a": [f"key{i}: 1 then, 2 now" for i in range(30)]}, {})
    assert many.endswith("and 10 more")
