"""The list of videos a data set is made of: JSON lines, or the annotations of Open-Sora-Plan and OSP-Next.

    {"path": "a.mp4", "caption": "a 3 drifting left"}
    {"path": "b/c.mp4", "caption": ["short", "a longer one"], "start_frame": 48, "end_frame": 300}

`path` is relative to a folder of videos; `start_frame` is the first frame to use and `end_frame` the first one not to,
counted from 0 as they are shown. `start` and `end` say the same in seconds from the first frame.

    [{"path": "a.mp4", "cap": ["a text"], "cut": [48, 300], "num_frames": 252, "fps": 24.0, ...}, ...]

In annotations, one list or an object a line, `cap` is a text or several, `cut` the first frame to use and the first one
not to, and `num_frames` how many are used at most. What else they say of a video is measured anew.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeGuard

from ospnext_ms.data.text import clean_prompt
from ospnext_ms.storage import strict_json
from ospnext_ms.storage.files import current_folder, refuse_pointer

KEYS = ("path", "caption", "start_frame", "end_frame", "start", "end")
ANNOTATION_KEYS = ("path", "cap", "cut", "num_frames", "crop")
# Enough to see what is wrong with a file.
MAX_PROBLEMS = 20
# A year; what is beyond is a mistake, and may be beyond the numbers too.
MAX_SECONDS = 366 * 24 * 3600
# Open-Sora-Plan's list of data sets.
_FOLDER_AND_FILE = re.compile(r"([^{,]+),\s*([^{,]+\.json)")


@dataclass(frozen=True)
class Entry:
    """One line, or entry of a list: its number from 1, the video's path as it stands there, one or more captions, and
    what to use of it.

    Either bound is given as the number of a frame or in seconds (`start`, `end`), never both.
    """

    line: int
    path: str
    captions: tuple[str, ...]
    start_frame: int = 0
    end_frame: int | None = None
    start: float | None = None
    end: float | None = None


def read_manifest(path: str | os.PathLike) -> list[Entry]:
    """All entries of a manifest; blank lines are skipped. Keys of annotations that are not used are named on stderr.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not UTF-8, no entries, or lines that are not as described above (up to 20 of them are listed).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no manifest {path} {current_folder()}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    refuse_pointer(path)
    entries: list[Entry] = []
    problems: list[str] = []
    unused: set[str] = set()
    kind, records = _records(path, text)
    for number, read in records:
        try:
            entries.append(_read_record(number, read(), unused))
        except ValueError as error:
            problems.append(f"{path}, {kind} {number}: {error}")
    if problems:
        kinds = {"line": "lines", "entry": "entries"}[kind]
        more = [f"and {len(problems) - MAX_PROBLEMS} more {kinds}"] if len(problems) > MAX_PROBLEMS else []
        raise ValueError("\n".join(problems[:MAX_PROBLEMS] + more))
    if not entries:
        raise ValueError(f"{path} lists no videos")
    if unused:
        print(f"{path}: not used, as the videos themselves say it: {', '.join(sorted(unused))}", file=sys.stderr)
    return entries


def _records(path: Path, text: str) -> tuple[str, list[tuple[int, Callable[[], object]]]]:
    """("line" or "entry", [(number, function that returns the record)]) of a manifest's text."""
    if text.lstrip().startswith("["):
        try:
            records = strict_json.parse(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        assert isinstance(records, list)
        return "entry", [(number, lambda record=record: record) for number, record in enumerate(records, 1)]
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if lines and (match := _FOLDER_AND_FILE.fullmatch(lines[0][1].strip())):
        raise ValueError(f"{path} lists folders and their annotations, not videos: give one of them, manifest: "
                         f"{match[2]} and video_root: {match[1]}")
    return "line", [(number, lambda line=line: strict_json.parse(line)) for number, line in lines]


def write_manifest(file: TextIO, entries: Iterable[tuple[str | os.PathLike, str | Sequence[str]]]) -> None:
    """Writes (path, caption or list of captions) pairs to an open text file, one line each."""
    for path, caption in entries:
        file.write(json.dumps({"path": str(path), "caption": caption}, ensure_ascii=False) + "\n")


def _read_record(number: int, record: object, unused: set[str]) -> Entry:
    """The Entry of a record; keys of annotations that are not used are added to `unused`."""
    if not isinstance(record, dict):
        raise ValueError(f"{json.dumps(record)[:80]} is not an object with the keys {', '.join(KEYS)}")
    if "cap" in record and "caption" not in record:
        unused |= record.keys() - ANNOTATION_KEYS
        record = _from_annotation(record)
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


def _from_annotation(record: dict) -> dict:
    """A record of an annotation file in our keys."""
    cut, frames, crop = (record.get(key) for key in ("cut", "num_frames", "crop"))
    if cut is not None and not (isinstance(cut, list) and len(cut) in (1, 2) and all(map(_is_frame, cut))):
        raise ValueError(f"cut is {cut!r}; expected: [first frame, first frame not to use]")
    if frames is not None and not (_is_frame(frames) and frames > 0):
        raise ValueError(f"num_frames is {frames!r}; expected: a whole number above 0")
    if crop is not None and any(value is not None for value in (crop if isinstance(crop, list) else [crop])) \
            and crop != _whole_picture(record.get("resolution")):
        raise ValueError(f"crop is {crop!r}: parts of pictures are not cut out here. Cut the video beforehand, or take "
                         "the key away to use all of the picture")
    start, *end = cut or [0]
    if frames is not None:
        end.append(start + frames)
    return {"path": record.get("path"), "caption": record["cap"], "start_frame": start,
            "end_frame": min(end, default=None)}


def _whole_picture(resolution: object) -> list:
    """The crop [left, right, top, bottom] that cuts nothing off, where the resolution is known."""
    size = resolution if isinstance(resolution, dict) else {}
    return [0, size.get("width"), 0, size.get("height")]


def _check_bounds(record: dict) -> None:
    for seconds, frame in (("start", "start_frame"), ("end", "end_frame")):
        if record.get(seconds) is not None and frame in record:
            raise ValueError(f"{seconds} and {frame} are both given; give one of them")
    start, end = record.get("start_frame", 0), record.get("end_frame")
    if not _is_frame(start) or not (end is None or _is_frame(end) and end > start):
        raise ValueError(f"start_frame is {start!r} and end_frame {end!r}; expected: whole numbers, 0 <= start < end")
    start, end = record.get("start"), record.get("end")
    if not all(value is None or _is_time(value) for value in (start, end)) or end is not None and end <= (start or 0):
        raise ValueError(f"start is {start!r} and end {end!r}; expected: seconds, 0 <= start < end")


def _is_frame(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_SECONDS


def _captions(value: object) -> tuple[str, ...]:
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not captions or not all(isinstance(text, str) for text in captions):
        raise ValueError(f"caption is {value!r}; it must be a text or a list of texts")
    cleaned = tuple(dict.fromkeys(clean_prompt(text) for text in captions))
    if "" in cleaned:
        raise ValueError(f"caption is {value!r}; a caption is empty")
    return cleaned
