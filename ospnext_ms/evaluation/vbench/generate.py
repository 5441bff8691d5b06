"""The videos that VBench asks for, made by `generate`'s own machinery: a list of jobs into a folder that is resumed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.evaluation.vbench.suite import SuiteVideo, pair_prompts, read_suite, suite_videos, unlike_pairs
from ospnext_ms.generation.folder import Folder, ignores_case
from ospnext_ms.generation.jobs import Job, negative_of

# Of all pairs: an augmented prompt nearly always keeps a word of the short one.
_SUSPICIOUS_SHARE = 0.3


def folder_of(output: str | Path) -> Folder:
    """Where the results lie: nothing but videos in OUTPUT/videos, which VBench lists; all else in OUTPUT/records."""
    return Folder(Path(output) / "videos", Path(output) / "records")


def jobs_of(config: GenerateConfig, suite: str | Path, augmented: str | Path | None = None,
            short: str | Path | None = None, dimensions: Sequence[str] | None = None,
            samples: int | None = None) -> list[Job]:
    """The jobs of a suite, see suite.suite_videos; sampling.seed is the seed of the first.

    Raises:
        FileNotFoundError, ValueError: a file is not there or does not fit (see read_suite, pair_prompts).
        ValueError: names differ in case only, and the file system of output_dir does not tell them apart.
    """
    entries = read_suite(suite)
    pairs = pair_prompts(entries, augmented, short) if augmented else None
    if pairs:
        unlike = unlike_pairs(pairs)
        if len(unlike) > _SUSPICIOUS_SHARE * len(pairs):
            print(f"warning: {len(unlike)} of {len(pairs)} augmented prompts have no word of their short prompt "
                  f"({unlike[0]!r} has {pairs[unlike[0]][:60]!r}); are the lines in the same order?", file=sys.stderr)
    videos = suite_videos(entries, config.sampling.seed, pairs, dimensions, samples)
    names = {video.name.casefold() for video in videos}
    if len(names) < len(videos) and ignores_case(config.output_dir):
        raise ValueError(f"{config.output_dir} lies where upper and lower case are the same to the file system, and "
                         "VBench has prompts that differ in nothing else; give a folder on another one")
    return [_job(config, video) for video in videos]


def _job(config: GenerateConfig, video: SuiteVideo) -> Job:
    return Job(video.text, video.name, video.seed, negative_prompt=negative_of(config.sampling),
               about={"vbench": {"prompt": video.prompt, "sample": video.sample, "dimensions": list(video.dimensions)}})
