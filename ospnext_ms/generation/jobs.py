"""The videos that a run is asked for: what each is made of, and how its file is called. No framework."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

# File systems allow 255 bytes; a temporary name beside the final one adds some.
MAX_NAME_BYTES = 230
_HASH_DIGITS = 8


@dataclass(frozen=True)
class Job:
    """One video to make.

    Args:
        prompt: the text that the network is given. name: of its files, without suffix; no other job of a run has it.
        seed, index: they decide its noise (see noise.starting_noise).
        negative_prompt: what guidance leads away from; None where guidance is off.
        about: further JSON values that its record is to tell.
    """

    prompt: str
    name: str
    seed: int
    index: int = 0
    negative_prompt: str | None = ""
    about: Mapping = field(default_factory=dict)

    @property
    def texts(self):
        """What the text encoder is asked for."""
        return [self.prompt] if self.negative_prompt is None else [self.prompt, self.negative_prompt]


def plain_jobs(sampling, prompts):
    """A Job for each prompt of a list, with seed and negative prompt of a SamplingSection: video_0000 and so on."""
    return [Job(prompt, index_name(i), sampling.seed, i, negative_of(sampling)) for i, prompt in enumerate(prompts)]


def negative_of(sampling):
    """The negative prompt of a SamplingSection, None where guidance is off."""
    return None if sampling.guidance == 1 else sampling.negative_prompt


def index_name(index):
    """video_0000, video_0001 ..."""
    return f"video_{index:04d}"


def file_name(text, sample=None):
    """TEXT, or TEXT-SAMPLE (the name VBench looks for), as far as a file may be called so.

    Characters that separate paths or do not print become "_", as does a leading dot (it would hide the file); long
    texts are cut. Whatever is changed is followed by "~" and a hash of the text, so that no two texts get one name.
    """
    name = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in text)
    name = "_" + name[1:] if name.startswith(".") else name
    ending = "" if sample is None else f"-{sample}"
    if name != text or len((name + ending).encode()) > MAX_NAME_BYTES:
        ending = f"~{_hash(text)}{ending}"
    return name.encode()[: MAX_NAME_BYTES - len(ending)].decode(errors="ignore") + ending


def told_apart(names):
    """The names for a file system to which upper and lower case are the same: later ones of a kind get a hash."""
    taken, result = set(), []
    for name in names:
        if name.casefold() in taken:
            ending = f"~{_hash(name)}"
            name = name.encode()[: MAX_NAME_BYTES - len(ending)].decode(errors="ignore") + ending
        taken.add(name.casefold())
        result.append(name)
    return result


def batches_of(jobs, size):
    """The jobs in the batches in which they are denoised, always the same ones: on some devices the numbers of a video
    depend in their last digits on the others of its batch."""
    return [jobs[i : i + size] for i in range(0, len(jobs), size)]


def _hash(text):
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
