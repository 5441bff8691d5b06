"""The list of videos a data set is made of: JSON lines.

    {"path": "a.mp4", "caption": "a 3 drifting left"}
    {"path": "b/c.mp4", "caption": ["short", "a longer one"], "start_frame": 48, "end_frame": 300}

`path` is relative to a folder of videos; `start_frame` is the first frame to use and `end_frame` the first one not to.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ospnext_ms.data.text import clean_prompt

KEYS = ("path", "caption", "start_frame", "end_frame")
# Enough to see what is wrong with a file.
MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Entry:
    """One line: its number from 1, the video's path as it stands there, one or more captions, and the frames to use."""

    line: int
    path: str
    captions: tuple
    start_frame: int = 0
    end_frame: int | None = None


def read_manifest(path):
    """All entries of a manifest; blank lines are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not UTF-8, no entries, or lines that are not as described above (up to 20 of them are listed).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no manifest {path} (current folder {Path.cwd()})")
    entries, problems = [], []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entries.append(_read_line(number, line))
        except ValueError as error:
            problems.append(f"{path}, line {number}: {error}")
    if problems:
        more = [f"and {len(problems) - MAX_PROBLEMS} more lines"] if len(problems) > MAX_PROBLEMS else []
        raise ValueError("\n".join(problems[:MAX_PROBLEMS] + more))
    if not entries:
        raise ValueError(f"{path} lists no videos")
    return entries


def write_manifest(file, entries):
    """Writes (path, caption or list of captions) pairs to an open text file, one line each."""
    for path, caption in entries:
        file.write(json.dumps({"path": str(path), "caption": caption}, ensure_ascii=False) + "\n")


def _read_line(number, line):
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{line.strip()[:80]} is not an object with the keys {', '.join(KEYS)}")
    unknown = [key for key in record if key not in KEYS]
    if unknown:
        raise ValueError(f"unknown keys {', '.join(unknown)}; valid: {', '.join(KEYS)}")
    path = record.get("path")
    if not isinstance(path, str) or not path:
        raise ValueError(f"path is {path!r}; it must be the name of a video file")
    start, end = record.get("start_frame", 0), record.get("end_frame")
    if not _is_frame(start) or not (end is None or _is_frame(end) and end > start):
        raise ValueError(f"start_frame is {start!r} and end_frame {end!r}; expected: whole numbers, 0 <= start < end")
    return Entry(number, path, _captions(record.get("caption")), start, end)


def _is_frame(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _captions(value):
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not captions or not all(isinstance(text, str) for text in captions):
        raise ValueError(f"caption is {value!r}; it must be a text or a list of texts")
    cleaned = tuple(dict.fromkeys(clean_prompt(text) for text in captions))
    if "" in cleaned:
        raise ValueError(f"caption is {value!r}; a caption is empty")
    return cleaned
