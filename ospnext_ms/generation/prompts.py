"""Prompt files, and the jobs that a configuration asks for. No framework."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ospnext_ms.config.checks import MAX_SEED
from ospnext_ms.data.text import clean_prompt
from ospnext_ms.generation.folder import Folder, ignores_case
from ospnext_ms.generation.jobs import Job, file_name, index_name, negative_of, told_apart
from ospnext_ms.storage import strict_json
from ospnext_ms.storage.files import current_folder

_KEYS = {"prompt": str, "name": str, "negative_prompt": str, "seed": int, "index": int}


@dataclass(frozen=True)
class Line:
    """A line of a prompt file; what it leaves out is None and comes from the configuration."""

    prompt: str
    name: str | None = None
    negative_prompt: str | None = None
    seed: int | None = None
    index: int | None = None


def output_folder(config):
    """Folder of a GenerateConfig's results: beside videos that are named after their prompts lies another one for the
    rest, because VBench lists the folder that it is given."""
    videos = Path(config.output_dir)
    if config.output_naming == "index":
        return Folder(videos)
    videos = videos.absolute()
    return Folder(config.output_dir, videos.with_name(f"{videos.name}_records"))


def list_jobs(config):
    """The jobs of a GenerateConfig, all samples of a prompt together, and how many lines repeat an earlier one.

    Raises:
        FileNotFoundError: there is no such prompt file.
        ValueError: no prompts, an empty prompt, a prompt file that cannot be read, two videos of one name, or a line
            that asks for what the configuration has switched off.
    """
    section, sampling = config.prompts, config.sampling
    if section.prompt is not None:
        if not clean_prompt(section.prompt):
            raise ValueError(f"the prompt {section.prompt!r} is empty")
        given = [Line(section.prompt.strip())]
    else:
        given = read_lines(section.prompt_file)
    lines = list(dict.fromkeys(given))
    _check_lines(lines, config)
    jobs, samples = [], Counter()
    for line in lines:
        for sample in range(section.samples_per_prompt):
            index = len(jobs) if line.index is None else line.index + sample
            called = line.prompt if line.name is None else line.name
            if config.output_naming == "prompt":
                name = file_name(called, samples[called])
                samples[called] += 1
            elif line.name is None:
                name = index_name(index)
            else:
                name = file_name(called, sample if section.samples_per_prompt > 1 else None)
            negative = line.negative_prompt if line.negative_prompt is not None else negative_of(sampling)
            jobs.append(Job(line.prompt, name, sampling.seed if line.seed is None else line.seed, index, negative))
    return _with_names_apart(jobs, config), len(given) - len(lines)


def _check_lines(lines, config):
    if config.sampling.guidance == 1 and any(line.negative_prompt is not None for line in lines):
        raise ValueError("lines of the prompt file give a negative_prompt, but sampling.guidance is 1, which is off")
    noise = config.sampling.starting_noise
    if noise is not None and any(line.seed is not None or line.index is not None for line in lines):
        raise ValueError("lines of the prompt file give a seed or an index, but the noise is that of "
                         f"sampling.starting_noise, {noise}")


def _with_names_apart(jobs, config):
    names = [job.name for job in jobs]
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ValueError(f"several videos would be named {repeated[0]}.mp4; give each line of the prompt file another "
                         "name, or raise samples_per_prompt to make several of a prompt")
    if len({name.casefold() for name in names}) < len(names) and ignores_case(config.output_dir):
        names = told_apart(names)
    return [Job(job.prompt, name, job.seed, job.index, job.negative_prompt)
            for job, name in zip(jobs, names, strict=True)]


def read_prompts(path):
    """The prompts of a file, where nothing else is wanted of it.

    Raises:
        As read_lines does; ValueError too where lines give more than a prompt.
    """
    lines = read_lines(path)
    more = next((line for line in lines if line != Line(line.prompt)), None)
    if more is not None:
        raise ValueError(f"{path} gives more than prompts (of {more.prompt!r}), which is not used here")
    return [line.prompt for line in lines]


def read_lines(path):
    """The lines of a UTF-8 prompt file: a prompt each, or JSON lines, empty ones left out.

    A file is of JSON lines where its name ends in .jsonl or its first line is a JSON object. Their keys are prompt,
    name, negative_prompt, seed and index; all but the prompt may be left out. A line ends at a line feed and nowhere
    else.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is not UTF-8, holds no prompt, or a line is no object
            of these keys (says which).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no prompt file {path} {current_folder()}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if clean_prompt(line)]
    if not lines:
        raise ValueError(f"{path} holds no prompt; expected one per line")
    if path.suffix != ".jsonl" and not _is_object(lines[0][1]):
        return [Line(line) for _, line in lines]
    return [_read_object(line, f"{path}, line {number}") for number, line in lines]


def _is_object(line):
    try:
        return isinstance(strict_json.parse(line), dict)
    except ValueError:
        return False


def _read_object(text, where):
    try:
        values = strict_json.parse(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{where}: {text[:80]} is no JSON object; expected {{\"prompt\": ...}}")
    for key, value in values.items():
        if key not in _KEYS:
            raise ValueError(f"{where}: unknown key {key!r}; valid: {', '.join(_KEYS)}")
        if type(value) is not _KEYS[key]:
            raise ValueError(f"{where}: {key} is {value!r}; expected {'a text' if _KEYS[key] is str else 'a number'}")
    for key in ("seed", "index"):
        if not 0 <= values.get(key, 0) <= MAX_SEED:
            raise ValueError(f"{where}: {key} is {values[key]}; it must be from 0 to {MAX_SEED}")
    for key in ("prompt", "name"):
        if not clean_prompt(values.get(key, "" if key == "prompt" else "-")):
            raise ValueError(f"{where}: the {key} is " + ("empty" if key in values else "missing"))
    return Line(**{key: value.strip() if key in ("prompt", "name") else value for key, value in values.items()})
