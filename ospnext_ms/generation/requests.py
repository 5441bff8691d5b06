"""What a run is asked to make, and every check that needs no framework: prompts, names, files, starting noise."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ospnext_ms.data.text import clean_prompt
from ospnext_ms.storage.open_weights import read_headers
from ospnext_ms.storage.peft_format import read_adapter_config

# File systems allow 255 bytes; a temporary name beside the final one adds some.
MAX_NAME_BYTES = 230


@dataclass(frozen=True)
class Video:
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
            videos.append(Video(prompt, index, stem))
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


def check_files(config):
    """Checks, without reading any weights, that the checkpoints and the tokenizer are there and output can be written.

    Raises:
        FileNotFoundError: a file or folder the configuration names is not there.
        ValueError: a checkpoint is no safetensors file or truncated, or the output folder cannot be written to.
    """
    model = config.model
    for name in ("dit", "vae", "text_encoder"):
        try:
            read_headers(getattr(model, name).checkpoint)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"model.{name}.checkpoint: {error}") from error
    if not Path(model.text_encoder.tokenizer).is_dir():
        raise FileNotFoundError(f"model.text_encoder.tokenizer: no folder {model.text_encoder.tokenizer} "
                                f"(current folder {Path.cwd()})")
    _check_output_folder(Path(config.output_dir))


def check_adapter(config):
    """Checks that a GenerateConfig's adapter, if any, is there and of a kind that can be used; reads no weights.

    Raises:
        FileNotFoundError, ValueError: see peft_format.read_adapter_config.
    """
    if config.adapter is not None:
        try:
            read_adapter_config(config.adapter)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"adapter: {error}") from error


def _check_output_folder(folder):
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"output_dir is {folder}, but {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"output_dir is {folder}, but {existing} cannot be written to")


def load_latents(config, count):
    """The starting noise of `sampling.latents` for `count` videos: float array [count, 16, T, H/8, W/8], or None.

    An array of one video [16, T, H/8, W/8] serves all of them. The file is mapped, not read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a .npy file of floats, or of another shape.
    """
    name = config.sampling.latents
    if name is None:
        return None
    if not Path(name).is_file():
        raise FileNotFoundError(f"sampling.latents: no file {name} (current folder {Path.cwd()})")
    try:
        latents = np.load(name, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"sampling.latents: {name} is not a .npy file of numbers: {error}") from error
    if not isinstance(latents, np.ndarray):
        raise ValueError(f"sampling.latents: {name} is an archive of arrays; expected a .npy file")
    shape = config.latent_shape
    if latents.dtype.kind != "f" or latents.shape not in (shape, (count, *shape)):
        raise ValueError(f"sampling.latents: {name} holds {latents.dtype} {latents.shape}; expected floats {shape}, or "
                         f"{(count, *shape)} for the {count} videos of this run")
    return np.broadcast_to(latents, (count, *shape))


def starting_noise(shape, seed, index):
    """Standard normal noise, fp32, of video `index` of a run with `seed`; the same on every device and in any batch."""
    return np.random.default_rng([seed, index]).standard_normal(shape, dtype=np.float32)
