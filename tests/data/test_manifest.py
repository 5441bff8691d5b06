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
])
def test_bad_lines_are_named(tmp_path, record, expected):
    path = tmp_path / "m.jsonl"
    path.write_text('{"path": "a.mp4", "caption": "fine"}\n' + json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2: .*" + expected):
        read_manifest(path)


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
