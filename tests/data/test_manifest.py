"""Manifests: what is read, and what is said about lines that cannot be."""

import io
import json

import pytest

from ospnext_ms.data.manifest import Entry, read_manifest, write_manifest


def test_entries(tmp_path):
    path = tmp_path / "manifest.jsonl"
    lines = ['\ufeff{"path": "a.mp4", "caption": " a  cat &amp; a dog "}', "",
             '{"path": "b/ü.mp4", "caption": ["short", "ein Kätzchen", "short"], "start_frame": 3, "end_frame": 9}']
    path.write_text("\n".join(lines), encoding="utf-8")
    assert read_manifest(path) == [
        Entry(1, "a.mp4", ("a cat & a dog",)), Entry(3, "b/ü.mp4", ("short", "ein Kätzchen"), 3, 9)]


def test_what_is_written_is_read(tmp_path):
    file = io.StringIO()
    write_manifest(file, [("a.mp4", "猫"), ("b.mp4", ["x", "y"])])
    (tmp_path / "m").write_text(file.getvalue(), encoding="utf-8")
    assert [(entry.path, entry.captions) for entry in read_manifest(tmp_path / "m")] == [
        ("a.mp4", ("猫",)), ("b.mp4", ("x", "y"))]


@pytest.mark.parametrize(("record", "expected"), [
    ({"path": "a", "caption": "x", "captoin": "y"}, "unknown keys captoin; valid: path, caption"),
    ({"caption": "x"}, "path is None"), ({"path": "", "caption": "x"}, "path is ''"),
    ({"path": "a"}, "caption is None"), ({"path": "a", "caption": []}, r"caption is \[\]"),
    ({"path": "a", "caption": ["x", 3]}, r"caption is \['x', 3\]"),
    ({"path": "a", "caption": "  "}, "a caption is empty"),
    ({"path": "a", "caption": "x", "start_frame": -1}, "start_frame is -1"),
    ({"path": "a", "caption": "x", "start_frame": 5, "end_frame": 5}, "start_frame is 5 and end_frame 5"),
    ({"path": "a", "caption": "x", "end_frame": 2.5}, "end_frame 2.5"), ([1, 2], "is not an object"),
    ({"path": "a", "caption": "x", "start": 2.5, "end": 2.5}, "start is 2.5 and end 2.5"),
    ({"path": "a", "caption": "x", "end": 0}, "end 0; expected: seconds"),
    ({"path": "a", "caption": "x", "start": "1"}, "start is '1'"),
    ({"path": "a", "caption": "x", "end": 1e300}, "end 1e.300; expected: seconds"),
    ({"path": "a", "caption": "x", "end": 10**400}, "expected: seconds"),
    ({"path": "a", "caption": "x", "start": 1.5, "start_frame": 3}, "start and start_frame are both given"),
    ({"path": "a\ud800", "caption": "x"}, "half a surrogate pair"), ({"path": "a", "caption": "\udc00"}, "surrogate"),
])
def test_bad_lines_are_named(tmp_path, record, expected):
    path = tmp_path / "m.jsonl"
    path.write_text('{"path": "a.mp4", "caption": "fine"}\n' + json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2: .*" + expected):
        read_manifest(path)


@pytest.mark.parametrize(("line", "expected"), [
    ('{"path": "a.mp4", "path": "b.mp4", "caption": "x"}', "the key 'path' is given twice"),
    ('{"path": "a.mp4", "caption": "x", "start": NaN}', "NaN is not a number in JSON"),
    ('{"path": "a.mp4", "caption": "x", "end": -Infinity}', "-Infinity is not a number in JSON"),
    ('{"path": ' + "[" * 100_000, "too deeply nested"),
    ('{"path": "a", "caption": "x", "end": ' + "9" * 5000 + "}", "4300"),
])
def test_lines_that_json_readers_let_pass_or_die_of(tmp_path, line, expected):
    path = tmp_path / "m.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"m\.jsonl, line 1: .*" + expected):
        read_manifest(path)


def test_seconds_say_what_to_use_as_frames_do(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"path": "a", "caption": "x", "start": 1, "end": 2.5}\n'
                    '{"path": "a", "caption": "x", "start_frame": 3, "end": 2.5}\n')
    assert read_manifest(path) == [Entry(1, "a", ("x",), start=1.0, end=2.5), Entry(2, "a", ("x",), 3, end=2.5)]


def test_all_bad_lines_are_listed_up_to_a_limit(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("not json\n" * 25)
    with pytest.raises(ValueError, match="and 5 more lines") as caught:
        read_manifest(path)
    assert str(caught.value).count("not JSON") == 20


def test_files_that_are_no_manifest(tmp_path):
    with pytest.raises(FileNotFoundError, match="no manifest"):
        read_manifest(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="lists no videos"):
        read_manifest(tmp_path / "empty")
    (tmp_path / "latin").write_bytes(b'{"path": "a", "caption": "\xe4"}')
    with pytest.raises(ValueError, match="not UTF-8"):
        read_manifest(tmp_path / "latin")


ANNOTATIONS = [
    {"path": "a.mp4", "cap": "a cat", "resolution": {"height": 720, "width": 1280}, "fps": 23.976, "num_frames": 240},
    {"path": "b.mp4", "cap": ["short", "a longer one"], "cut": [48, 300], "crop": [0, 640, 0, 480], "motion": 0.01,
     "resolution": {"height": 480, "width": 640}},
    {"path": "c.mp4", "cap": ["x"], "cut": [10, 300], "num_frames": 100, "crop": [None, None, None, None]},
    {"path": "d.mp4", "cap": "x", "cut": [7], "num_frames": None}, {"path": "e.jpg", "cap": ["x"]},
]
EXPECTED = [Entry(1, "a.mp4", ("a cat",), 0, 240), Entry(2, "b.mp4", ("short", "a longer one"), 48, 300),
            Entry(3, "c.mp4", ("x",), 10, 110), Entry(4, "d.mp4", ("x",), 7), Entry(5, "e.jpg", ("x",))]


@pytest.mark.parametrize("form", ["list", "lines"])
def test_annotations_of_the_authors(tmp_path, capsys, form):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(ANNOTATIONS, indent=1) if form == "list" else "\n".join(map(json.dumps, ANNOTATIONS)))
    assert read_manifest(path) == EXPECTED
    assert capsys.readouterr().err == f"{path}: not used, as the videos themselves say it: fps, motion, resolution\n"


@pytest.mark.parametrize(("record", "expected"), [
    ({"path": "a", "cap": "x", "cut": [5, 5]}, "start_frame is 5 and end_frame 5"),
    ({"path": "a", "cap": "x", "cut": [0.5, 9]}, r"cut is \[0.5, 9\]; expected: \[first frame"),
    ({"path": "a", "cap": "x", "cut": 5}, "cut is 5; expected"), ({"path": "a", "cap": []}, r"caption is \[\]"),
    ({"path": "a", "cap": "x", "num_frames": 0}, "num_frames is 0; expected"),
    ({"path": "a", "cap": "x", "crop": [0, 600, 0, 480], "resolution": {"height": 480, "width": 640}},
     r"crop is \[0, 600, 0, 480\]: parts of pictures are not cut out here"),
    ({"path": "a", "cap": "x", "caption": "y"}, "unknown keys cap; valid"), (3, "3 is not an object"),
])
def test_bad_entries_of_annotations_are_named(tmp_path, record, expected):
    path = tmp_path / "m.json"
    path.write_text(json.dumps([ANNOTATIONS[0], record]))
    with pytest.raises(ValueError, match=r"m\.json, entry 2: .*" + expected):
        read_manifest(path)


def test_lists_that_are_no_manifests(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("/videos/pexels, annotations/pexels.json\n")
    with pytest.raises(ValueError, match="manifest: annotations/pexels.json and video_root: /videos/pexels"):
        read_manifest(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="data.txt: not JSON that can be read: too deeply nested"):
        read_manifest(path)
    path.write_text('[{"path": "a.mp4", "cap": "x"},')
    with pytest.raises(ValueError, match="data.txt: not JSON"):
        read_manifest(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9876\n")
    with pytest.raises(ValueError, match="git LFS pointer"):
        read_manifest(path)
