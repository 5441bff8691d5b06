"""Result files of VBench: read from a folder, a file or the leaderboard's archive, and packed into that archive.

Upstream writes NAME_eval_results.json, {dimension: [score, [result of each video]]}, and NAME_full_info.json beside
it. A table by hand, {dimension: score}, is read too, its texts as notes.
"""

import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ospnext_ms.evaluation.vbench.dimensions import DIMENSIONS, SAMPLES
from ospnext_ms.storage.files import atomic_path, current_folder
from ospnext_ms.storage.strict_json import parse

RESULTS_SUFFIX, INFO_SUFFIX = "_eval_results.json", "_full_info.json"
Unit = Literal["percent", "fraction"]


@dataclass(frozen=True)
class ResultFile:
    """One file's scores as fractions; `videos` counts the results it has of single videos, None for a table by hand."""

    name: str
    text: str
    scores: dict[str, float]
    videos: dict[str, int] | None
    unit: Unit


def read_results(place: str | Path, unit: Unit | None = None) -> list[ResultFile]:
    """The result files of a folder (NAME_eval_results.json in it, or one folder deeper), of a zip, or one JSON file.

    A file with a score above 1 is in percent, any other in fractions, unless `unit` says.

    Raises:
        FileNotFoundError: there is no such place, or it holds no result file.
        ValueError: not a result file of VBench, or its unit is not clear.
    """
    place = Path(place)
    if not place.exists():
        raise FileNotFoundError(f"no results {place} {current_folder()}")
    if place.is_file() and not zipfile.is_zipfile(place):
        return [_read(place.name, _text(place.read_bytes(), place), unit)]
    texts = dict(_members(place) if place.is_file() else _files(place))
    if not texts:
        raise FileNotFoundError(f"{place} holds no file *{RESULTS_SUFFIX}; `vbench score` and upstream's package write "
                                "them")
    return [_read(name, text, unit) for name, text in texts.items()]


def merge(files: Iterable[ResultFile]) -> dict[str, float]:
    """The scores of all files, fractions by dimension; ValueError where two files disagree on one."""
    scores: dict[str, float] = {}
    source: dict[str, str] = {}
    for file in files:
        for name, score in file.scores.items():
            if name in scores and scores[name] != score:
                raise ValueError(f"{source[name]} and {file.name} hold different scores of {name} ({scores[name]:.6g} "
                                 f"and {score:.6g}); take one of them away")
            scores[name], source[name] = score, file.name
    return scores


def few_videos(files: Iterable[ResultFile]) -> list[str]:
    """A line for every dimension that was scored on fewer videos than the official suite has for it.

    Of colour upstream counts only videos in which it has found the object.
    """
    counts = {name: count for file in files for name, count in (file.videos or {}).items()}
    return [f"{DIMENSIONS[name].title}: {count} of {SAMPLES * DIMENSIONS[name].prompts} videos"
            for name, count in counts.items() if name != "color" and count < SAMPLES * DIMENSIONS[name].prompts]


def write_archive(path: str | Path, files: Iterable[ResultFile]) -> Path:
    """Packs result files as the leaderboard takes them: upstream's own files as they are, at the top of a zip.

    Raises:
        ValueError: a file is a table by hand, or in percent, which the leaderboard would misread.
    """
    path, files = Path(path), list(files)
    for file in files:
        if file.videos is None or file.unit != "fraction":
            raise ValueError(f"{file.name} is not a file that upstream's package wrote (fractions, with the result of "
                             "every video); the leaderboard takes no other")
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.writestr(file.name.replace("/", "_"), file.text)
    return path


def _files(folder: Path) -> list[tuple[str, str]]:
    paths = sorted({*folder.glob(f"*{RESULTS_SUFFIX}"), *folder.glob(f"*/*{RESULTS_SUFFIX}")})
    return [(str(path.relative_to(folder)), _text(path.read_bytes(), path)) for path in paths]


def _members(archive_path: Path) -> list[tuple[str, str]]:
    with zipfile.ZipFile(archive_path) as archive:
        names = sorted(name for name in archive.namelist()
                       if name.endswith(RESULTS_SUFFIX) and not Path(name).name.startswith("."))
        return [(name, _text(archive.read(name), f"{archive_path}: {name}")) for name in names]


def _text(data: bytes, name: object) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text: {error}") from error


def _read(name: str, text: str, unit: Unit | None) -> ResultFile:
    try:
        content = parse(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} is not a result file of VBench: expected {{dimension: [score, videos]}}")
    raw, videos = {}, {}
    for key, value in content.items():
        if isinstance(value, str):
            continue
        dimension = key.replace(" ", "_")
        if dimension not in DIMENSIONS:
            raise ValueError(f"{name}: VBench has no dimension {key!r}; they are {', '.join(DIMENSIONS)}")
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], list):
            videos[dimension] = len(value[1])
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name}: the score of {key} is {json.dumps(value)[:40]}; expected a number, or "
                             "[score, videos] as upstream writes it")
        raw[dimension] = value
    if videos and len(videos) < len(raw):
        raise ValueError(f"{name} mixes plain scores with upstream's [score, videos]; give each a file of its own")
    unit = unit or _unit(name, raw)
    factor = 0.01 if unit == "percent" else 1.0
    return ResultFile(name, text, {key: value * factor for key, value in raw.items()}, videos or None, unit)


def _unit(name: str, raw: Mapping[str, float]) -> Unit:
    above = [key for key, value in raw.items() if value > 1]
    below = [key for key, value in raw.items() if 0 < value <= 1]
    if above and below:
        raise ValueError(f"{name} has scores above 1 ({above[0]} {raw[above[0]]:g}) and below ({below[0]} "
                         f"{raw[below[0]]:g}); say which they are with --unit percent or --unit fraction")
    return "percent" if above else "fraction"
