"""The list of videos a data set is made of: JSON lines.

    {"path": "a.mp4", "caption": "a 3 drifting left"}
    {"path": "b/c.mp4", "caption": ["short", "a longer one"], "start_frame": 48, "end_frame": 300}

`path` is relative to a folder of videos; `start_frame` is the first frame to use and `end_frame` the first one not to,
counted from 0 as they are shown. `start` and `end` say the same in seconds from the first frame.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ospnext_ms.data.text import clean_prompt
from ospnext_ms.storage import strict_json

KEYS = ("path", "caption", "start_frame", "end_frame", "start", "end")
# Enough to see what is wrong with a file.
MAX_PROBLEMS = 20
# A year; what is beyond is a mistake, and may be beyond the numbers too.
MAX_SECONDS = 366 * 24 * 3600


@dataclass(frozen=True)
class Entry:
    """One line: its number from 1, the video's path as it stands there, one or more captions, and what to use of it.

    Either bound is given as the number of a frame or in seconds (`start`, `end`), never both.
    """

    line: int
    path: str
    captions: tuple
    start_frame: int = 0
    end_frame: int | None = None
    start: float | None = None
    end: float | None = None


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
    record = strict_json.parse(line)
    if not isinstance(record, dict):
        raise ValueError(f"{line.strip()[:80]} is not an object with the keys {', '.join(KEYS)}")
    unknown = [key for key in record if key not in KEYS]
    if unknown:
        raise ValueError(f"unknown keys {', '.join(unknown)}; valid: {', '.join(KEYS)}")
    path = record.get("path")
    if not isinstance(path, str) or not path:
        raise ValueError(f"path is {path!r}; it must be the name of a video file")
    _check_bounds(record)
    seconds = {key: float(record[key]) for key in ("start", "end") if record.get(key) is not None}
    return Entry(number, path, _captions(record.get("caption")), record.get("start_frame", 0), record.get("end_frame"),
                 **seconds)


def _check_bounds(record):
    for seconds, frame in (("start", "start_frame"), ("end", "end_frame")):
        if record.get(seconds) is not None and frame in record:
            raise ValueError(f"{seconds} and {frame} are both given; give one of them")
    start, end = record.get("start_frame", 0), record.get("end_frame")
    if not _is_frame(start) or not (end is None or _is_frame(end) and end > start):
        raise ValueError(f"start_frame is {start!r} and end_frame {end!r}; expected: whole numbers, 0 <= start < end")
    start, end = record.get("start"), record.get("end")
    if not all(value is None or _is_time(value) for value in (start, end)) or end is not None and end <= (start or 0):
        raise ValueError(f"start is {start!r} and end {end!r}; expected: seconds, 0 <= start < end")


def _is_frame(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_time(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_SECONDS


def _captions(value):
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not captions or not all(isinstance(text, str) for text in captions):
        raise ValueError(f"caption is {value!r}; it must be a text or a list of texts")
    cleaned = tuple(dict.fromkeys(clean_prompt(text) for text in captions))
    if "" in cleaned:
        raise ValueError(f"caption is {value!r}; a caption is empty")
    return cleaned
