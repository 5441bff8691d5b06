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
    ("[" * 100_000, "too deeply nested"), ('{"path": "a", "caption": "x", "end": ' + "9" * 5000 + "}", "4300"),
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
