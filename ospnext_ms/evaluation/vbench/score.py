"""Upstream's package scores a folder of videos, dimension by dimension, in an environment of its own."""

import json
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ospnext_ms.evaluation.vbench import upstream
from ospnext_ms.evaluation.vbench.dimensions import DIMENSIONS, check_names
from ospnext_ms.evaluation.vbench.needs import environment, missing_needs
from ospnext_ms.evaluation.vbench.results import INFO_SUFFIX, RESULTS_SUFFIX, read_results
from ospnext_ms.evaluation.vbench.suite import Entry, read_suite, videos_looked_up
from ospnext_ms.storage.files import atomic_path, current_folder
from ospnext_ms.storage.fingerprint import of_whole_file

VERSION = "0.1.5"
SUFFIXES = (".mp4", ".gif", ".png")
_SCRIPT = Path(upstream.__file__)
_REMEDY = f"`bash scripts/vbench.sh FOLDER` makes an environment with vbench {VERSION}"


@dataclass(frozen=True)
class Environment:
    """Another interpreter and what its environment has."""

    python: str
    suite: Path
    torch: str
    cuda: bool
    detectron2: bool


def examine(python: str) -> Environment:
    """Asks an interpreter what it has.

    Raises:
        FileNotFoundError: there is no such interpreter.
        ValueError: it has no package vbench, or another version of it.
    """
    found = shutil.which(python)
    if found is None:
        raise FileNotFoundError(f"no interpreter {python}; {_REMEDY}")
    answer = subprocess.run([found, str(_SCRIPT), "probe"], capture_output=True, text=True, check=False)
    lines = answer.stdout.splitlines()
    if answer.returncode or not lines:
        raise ValueError(f"{python} cannot run PyTorch ({_last_line(answer.stderr)}); {_REMEDY}")
    facts = json.loads(lines[-1])
    if facts["version"] != VERSION:
        has = f"vbench {facts['version']}" if facts["version"] else "no package vbench"
        raise ValueError(f"{python} has {has}; {_REMEDY}")
    return Environment(found, Path(facts["suite"]), facts["torch"], facts["cuda"], facts["detectron2"])


def _say(line: str) -> None:
    print(line, flush=True)


def score(videos: str | Path, python: str, output: str | Path, *, suite: str | Path | None = None,
          dimensions: Sequence[str] | None = None, device: str | None = None, partial: bool = False,
          overwrite: bool = False, only_check: bool = False, say: Callable[[str], None] = _say) -> list[str]:
    """Scores `videos` for every dimension that has not been scored; returns those that failed, or would.

    Writes into `output` DIMENSION_eval_results.json and DIMENSION_full_info.json as upstream does, DIMENSION.log with
    what it printed, and records/DIMENSION.json with what was scored: with the same videos and suite a dimension is
    passed over the next time, with others it is scored again.

    Args:
        suite: instead of the package's own. partial: score dimensions with videos missing too, which upstream averages
            over what there is. overwrite: score again what has been scored. only_check: score nothing, say what is
            missing.

    Raises:
        FileNotFoundError, ValueError: see examine; the folder of videos is not there, or holds other files.
    """
    names = check_names(list(dimensions)) if dimensions else list(DIMENSIONS)
    videos, output = Path(videos), Path(output)
    present = _list_videos(videos)
    other = examine(python)
    entries = read_suite(suite or other.suite)
    device = device or ("cuda" if other.cuda else "cpu")
    say(f"vbench {VERSION} on {device} (torch {other.torch}), {len(present)} videos in {videos}")
    failed = []
    if only_check:
        for name in names:
            _check_one(other, name, entries, present, failed, say)
        return failed
    output.mkdir(parents=True, exist_ok=True)
    run = _Run(other, Path(suite or other.suite).resolve(), videos.resolve(), output, device)
    for number, name in enumerate(names, 1):
        say(f"[{number}/{len(names)}] {name}: " + _score_one(run, name, entries, present, partial, overwrite, failed))
    return failed


def _check_one(other: Environment, name: str, entries: list[Entry], present: Mapping[str, Path], failed: list[str],
               say: Callable[[str], None]) -> None:
    """Says what a dimension lacks; adds it to `failed` if it cannot be scored as it is."""
    wanted = videos_looked_up(entries, name, _suffix(present))
    there = sum(video in present for video in wanted)
    needs = missing_needs(name, environment(), other.detectron2)
    if there < len(wanted) or not wanted or needs:
        failed.append(name)
    say(f"{name}: {there} of {len(wanted)} videos; " + ("all it needs is there" if not needs else "it lacks"))
    for line in needs:
        say(f"    {line}")


@dataclass(frozen=True)
class _Run:
    environment: Environment
    suite: Path
    videos: Path
    output: Path
    device: str

    def result(self, name: str) -> Path:
        return self.output / f"{name}{RESULTS_SUFFIX}"

    def record(self, name: str) -> Path:
        return self.output / "records" / f"{name}.json"


def _score_one(run: _Run, name: str, entries: list[Entry], present: Mapping[str, Path], partial: bool,
               overwrite: bool, failed: list[str]) -> str:
    wanted = videos_looked_up(entries, name, _suffix(present))
    there = [video for video in wanted if video in present]
    if not there or (len(there) < len(wanted) and not partial):
        failed.append(name)
        absent = next((video for video in wanted if video not in present), "the suite has no prompt for it")
        return (f"not scored, {len(there)} of {len(wanted)} videos are there (missing: {absent}); "
                "--partial scores what there is")
    made_of = {"vbench": VERSION, "device": run.device, "suite": of_whole_file(run.suite),
               "videos": {video: of_whole_file(present[video]) for video in there}}
    state = _state(run, name, made_of)
    if state == "same" and not overwrite:
        return f"{_read_score(run.result(name), name):.4f}, scored before"
    if state == "unknown" and not overwrite:
        return "a result without a record is there, kept; --overwrite scores again"
    start = time.monotonic()
    trouble = _run_upstream(run, name)
    if trouble:
        failed.append(name)
        needs = missing_needs(name, environment(), run.environment.detectron2)
        return "\n    it lacks ".join([f"failed: {trouble} (see {run.output / f'{name}.log'})", *needs])
    seconds = time.monotonic() - start
    _write_json(run.record(name), made_of | {"seconds": round(seconds, 1), "torch": run.environment.torch})
    share = "" if len(there) == len(wanted) else f" of {len(wanted)}, PARTIAL"
    return f"{_read_score(run.result(name), name):.4f}, {len(there)} videos{share}, {seconds:.0f} s"


def _state(run: _Run, name: str, made_of: Mapping) -> str:
    """none (to be scored), same (scored, of the same), changed, or unknown (a result that this did not write)."""
    if not run.result(name).is_file():
        return "none"
    if not run.record(name).is_file():
        return "unknown"
    record = json.loads(run.record(name).read_text(encoding="utf-8"))
    return "same" if all(record.get(key) == value for key, value in made_of.items()) else "changed"


def _run_upstream(run: _Run, name: str) -> str | None:
    """Has one dimension scored; what went wrong, or None once its result files are in place."""
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=run.output) as folder, \
            open(run.output / f"{name}.log", "w", encoding="utf-8") as log:
        arguments = [str(run.suite), str(run.videos), folder, name, run.device]
        code = subprocess.run([run.environment.python, str(_SCRIPT), "score", *arguments], stdout=log,
                              stderr=subprocess.STDOUT, cwd=folder, check=False).returncode
        if code:
            return _last_line((run.output / f"{name}.log").read_text(encoding="utf-8", errors="replace")) \
                or f"exit status {code}"
        result = Path(folder) / f"{name}{RESULTS_SUFFIX}"
        try:
            score = _read_score(result, name)
        except ValueError as error:
            return str(error)
        if not math.isfinite(score):
            return "upstream gave no number"
        for suffix in (INFO_SUFFIX, RESULTS_SUFFIX):
            with atomic_path(run.output / f"{name}{suffix}") as temporary:
                shutil.copyfile(Path(folder) / f"{name}{suffix}", temporary)
    return None


def _read_score(path: Path, name: str) -> float:
    [file] = read_results(path, "fraction")
    if name not in file.scores:
        raise ValueError(f"{path} has no score of {name}")
    return file.scores[name]


def _list_videos(folder: Path) -> dict[str, Path]:
    """{file name: path}; ValueError where the folder holds what upstream would trip over."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of videos {folder} {current_folder()}")
    present = {path.name: path for path in sorted(folder.iterdir())}
    if not present:
        raise FileNotFoundError(f"{folder} is empty; `vbench generate` writes videos into OUTPUT/videos")
    strangers = [name for name, path in present.items() if path.is_dir() or path.suffix not in SUFFIXES]
    suffixes = {path.suffix for path in present.values()}
    if strangers or len(suffixes) > 1:
        example = strangers[0] if strangers else f"both {' and '.join(sorted(suffixes))}"
        raise ValueError(f"{folder} must hold videos of one suffix and nothing else, for upstream takes the suffix of "
                         f"whatever it lists first; it has {example}")
    return present


def _suffix(present: Mapping[str, Path]) -> str:
    return next(iter(present.values())).suffix


def _write_json(path: Path, content: object) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
