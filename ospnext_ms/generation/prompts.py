"""What a run is asked to make: prompts, and the names of their videos. No framework."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ospnext_ms.data.text import clean_prompt

# File systems allow 255 bytes; a temporary name beside the final one adds some.
MAX_NAME_BYTES = 230


@dataclass(frozen=True)
class Request:
    """One video to make: its prompt, its position in the run (which with the seed decides its noise), its file stem."""

    prompt: str
    index: int
    stem: str


def list_videos(config):
    """The videos of a GenerateConfig, all samples of a prompt together.

    Raises:
        FileNotFoundError: there is no such prompt file.
        ValueError: no prompts, an empty prompt, a prompt file that is not UTF-8, or two videos of one name.
    """
    count = config.prompts.samples_per_prompt
    videos = []
    for prompt in _read_prompts(config.prompts):
        for sample in range(count):
            index = len(videos)
            stem = f"video_{index:04d}" if config.output_naming == "index" else prompt_name(prompt, sample)
            videos.append(Request(prompt, index, stem))
    # Compared without case: some file systems do not tell such names apart.
    repeated = [stem for stem, times in Counter(video.stem.casefold() for video in videos).items() if times > 1]
    if repeated:
        raise ValueError(f"output_naming is 'prompt', but several videos would be named {repeated[0]}.mp4; "
                         "remove repeated prompts, raise samples_per_prompt instead, or use output_naming: index")
    return videos


def prompt_name(prompt, sample):
    """PROMPT-INDEX, the name VBench looks for, as far as a file may have it.

    Characters that separate paths or do not print become "_", as does a leading dot (it would hide the file); long
    prompts are cut.
    """
    name = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in prompt.strip())
    name = "_" + name[1:] if name.startswith(".") else name
    ending = f"-{sample}"
    return name.encode()[: MAX_NAME_BYTES - len(ending)].decode(errors="ignore") + ending


def _read_prompts(section):
    if section.prompt is not None:
        if not clean_prompt(section.prompt):
            raise ValueError(f"the prompt {section.prompt!r} is empty")
        return [section.prompt.strip()]
    return read_prompts(section.prompt_file)


def read_prompts(path):
    """The prompts of a UTF-8 file, one per line, empty lines left out.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is not UTF-8 or holds no prompt.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no prompt file {path} (current folder {Path.cwd()})")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    prompts = [line.strip() for line in lines if clean_prompt(line)]
    if not prompts:
        raise ValueError(f"{path} holds no prompt; expected one per line")
    return prompts
