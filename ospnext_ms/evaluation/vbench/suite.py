"""VBench's suite: its texts, the videos it asks for, and the seed of each.

VBench_full_info.json lists 946 entries with 944 different texts. Upstream looks for PROMPT-0.mp4 to PROMPT-4.mp4 of
each; case counts ("a fantasy landscape" and "A fantasy landscape" are two texts).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ospnext_ms.evaluation.vbench.dimensions import DIMENSIONS, SAMPLES, check_names
from ospnext_ms.storage.files import current_folder
from ospnext_ms.storage.strict_json import parse

# Only still videos count there: upstream's static filter picks 5 of these.
FLICKERING, FLICKERING_SAMPLES = "temporal_flickering", 25
MAX_NAME_BYTES = 255


@dataclass(frozen=True)
class Entry:
    """A line of the suite file: a short prompt and what it is scored for."""

    prompt: str
    dimensions: tuple[str, ...]


@dataclass(frozen=True)
class SuiteVideo:
    """A video the suite asks for: PROMPT-SAMPLE.mp4, made of `text` (the augmented prompt, or the short one).

    `seed` follows from the text's place in the whole suite and the sample, whatever else is asked for.
    """

    prompt: str
    text: str
    sample: int
    seed: int
    dimensions: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file's name without suffix."""
        return f"{self.prompt}-{self.sample}"


def read_suite(path: str | Path) -> list[Entry]:
    """The entries of a suite file in VBench's format.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a suite of VBench, or has a prompt that no file can be named after.
    """
    content = parse(_read_text(path, "suite"))
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path} is not a suite of VBench: expected a list of {{prompt_en, dimension}}, as in "
                         "VBench_full_info.json")
    return [_entry(path, number, item) for number, item in enumerate(content, 1)]


def _entry(path: str | Path, number: int, item: object) -> Entry:
    prompt = item.get("prompt_en") if isinstance(item, dict) else None
    names = item.get("dimension") if isinstance(item, dict) else None
    if not isinstance(prompt, str) or not prompt.strip() or not isinstance(names, list) or not names:
        raise ValueError(f"{path}, entry {number}: expected a prompt_en and a list of dimensions")
    unknown = [name for name in names if name not in DIMENSIONS]
    if unknown:
        raise ValueError(f"{path}, entry {number}: VBench has no dimension {unknown[0]!r}")
    name = f"{prompt}-{FLICKERING_SAMPLES - 1}.mp4"
    if "/" in prompt or "\0" in prompt or len(name.encode()) > MAX_NAME_BYTES or prompt.startswith("."):
        raise ValueError(f"{path}, entry {number}: upstream would look for a file of the prompt's name, which "
                         f"{prompt[:60]!r} cannot be (a slash, a leading dot, or more than {MAX_NAME_BYTES} bytes)")
    return Entry(prompt, tuple(names))


def pair_prompts(entries: Sequence[Entry], augmented: str | Path, short: str | Path | None = None) -> dict[str, str]:
    """{short prompt: augmented prompt}, by line.

    Line i of `augmented` belongs to line i of `short`, or without it to entry i of the suite (946 lines) or to its
    text i (944). Of a text that comes twice the first line counts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the numbers of lines differ, a line is empty, or texts of the suite have no line.
    """
    lines = _lines(augmented, "augmented prompts")
    texts = list(dict.fromkeys(entry.prompt for entry in entries))
    if short is not None:
        prompts, where = _lines(short, "short prompts"), str(short)
        counts = f"{len(prompts)}"
    else:
        prompts = texts if len(lines) == len(texts) else [entry.prompt for entry in entries]
        where, counts = "the suite", f"{len(entries)} entries of {len(texts)}"
    if len(lines) != len(prompts):
        raise ValueError(f"{augmented} has {len(lines)} lines and {where} {counts} prompts; line i of one belongs to "
                         "line i of the other (name the file of short prompts with --short)")
    pairs: dict[str, str] = {}
    for prompt, line in zip(prompts, lines, strict=True):
        pairs.setdefault(prompt, line)
    stripped = {prompt.strip(): line for prompt, line in pairs.items()}
    missing = [text for text in texts if text.strip() not in stripped]
    if missing:
        raise ValueError(f"{where} has no line for {len(missing)} prompts of the suite, such as {missing[0]!r}")
    return {text: stripped[text.strip()] for text in texts}


def unlike_pairs(pairs: dict[str, str]) -> list[str]:
    """Short prompts none of whose longer words is in what they are paired with: many hint at another order of lines."""
    def words(text: str) -> set[str]:
        return {word[:4] for word in re.findall(r"[a-z]{4,}", text.lower())}

    return [short for short, text in pairs.items() if words(short) and not words(short) & words(text)]


def suite_videos(entries: Sequence[Entry], seed: int, pairs: dict[str, str] | None = None,
                 dimensions: Sequence[str] | None = None, samples: int | None = None) -> list[SuiteVideo]:
    """The videos to make, all samples of a text together, every text once.

    Without `samples` 5 of a text, and 25 of those of temporal flickering where `dimensions` names it.

    Raises:
        ValueError: no such dimension, or none of the suite's texts is for one of them.
    """
    wanted = check_names(list(dimensions)) if dimensions is not None else list(DIMENSIONS)
    texts: dict[str, list[str]] = {}
    for entry in entries:
        texts.setdefault(entry.prompt, []).extend(entry.dimensions)
    if dimensions is not None:
        empty = [name for name in wanted if not any(name in names for names in texts.values())]
        if empty:
            raise ValueError(f"the suite has no prompt for {', '.join(empty)}")
    videos = []
    for number, (prompt, names) in enumerate(texts.items()):
        if not set(names) & set(wanted):
            continue
        many = dimensions is not None and FLICKERING in wanted and FLICKERING in names
        count = samples or (FLICKERING_SAMPLES if many else SAMPLES)
        for sample in range(count):
            videos.append(SuiteVideo(prompt, pairs[prompt] if pairs else prompt, sample,
                                     seed + sample * len(texts) + number, tuple(dict.fromkeys(names))))
    return videos


def videos_looked_up(entries: Sequence[Entry], dimension: str, suffix: str = ".mp4") -> list[str]:
    """The file names that upstream looks up for a dimension, each once."""
    return list(dict.fromkeys(f"{entry.prompt}-{sample}{suffix}" for entry in entries
                              if dimension in entry.dimensions for sample in range(SAMPLES)))


def _lines(path: str | Path, what: str) -> list[str]:
    lines = [line.removesuffix("\r") for line in _read_text(path, what).split("\n")]
    if lines and not lines[-1].strip():
        lines.pop()
    empty = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
    if empty is not None:
        raise ValueError(f"{path}, line {empty} is empty; lines are paired by their number")
    return lines


def _read_text(path: str | Path, what: str) -> str:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of the {what} {path} {current_folder()}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
