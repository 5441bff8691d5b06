"""What the numbers of a run's videos depend on, so that a folder holds videos of one kind. No framework."""

import dataclasses
import json
from pathlib import Path

from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import read_section
from ospnext_ms.config.resuming import GENERATE_MAY_CHANGE, differences
from ospnext_ms.storage import fingerprint


class Identity:
    """What all videos of a run depend on, to be compared with what is told of other videos.

    Args:
        config: GenerateConfig. contents: of contents_of. machine: {"device": ..., "dtype": ...}, where they are known.
    """

    def __init__(self, config, contents, machine=None):
        self.config = config
        self.contents = contents
        self._machine = machine or {}
        self._now = dataclasses.asdict(config) | self._machine | contents
        self._seen = {}

    def differences_of_run(self, record):
        """Lines that name the settings and files with which a record's video was made and this run's is not."""
        then = [record["configuration"], record.get("contents", {}), {key: record.get(key) for key in self._machine}]
        # The records of a folder are nearly all alike.
        key = json.dumps(then)
        if key not in self._seen:
            self._seen[key] = self._compare(*then)
        return self._seen[key]

    def _compare(self, configuration, contents, machine):
        try:
            saved = dataclasses.asdict(read_section(GenerateConfig, configuration))
        except ValueError as error:
            return [f"a configuration that cannot be read any more: {str(error).splitlines()[0]}"]
        return differences(saved | machine | contents, self._now, GENERATE_MAY_CHANGE)

    def differences_of_job(self, record, job):
        """Lines that name what a record says of prompt, negative prompt, seed and index and a Job says otherwise."""
        now = self.fields_of(job)
        return differences({key: record.get(key) for key in now}, now)

    def fields_of(self, job):
        """What a record tells of a Job, by which its video is recognised; with given noise there is no seed."""
        seed = job.seed if self.config.sampling.starting_noise is None else None
        return {"prompt": job.prompt, "negative_prompt": job.negative_prompt, "seed": seed, "index": job.index}


def contents_of(config):
    """{"contents of KEY": short hash} of the files that a GenerateConfig names; large ones are not read whole."""
    model, noise = config.model, config.sampling.starting_noise
    hashes = {f"model.{name}.checkpoint": fingerprint.of_checkpoint(getattr(model, name).checkpoint)
              for name in ("dit", "vae", "text_encoder")}
    hashes["model.text_encoder.tokenizer"] = _of_folder(model.text_encoder.tokenizer)
    hashes["sampling.starting_noise"] = noise and fingerprint.of_whole_file(noise)
    if config.sampling.cache is not None:
        hashes["sampling.cache.calibration"] = fingerprint.of_whole_file(config.sampling.cache.calibration)
    contents = {f"contents of {key}": value and value[:16] for key, value in hashes.items()}
    return contents | {"contents of adapters": adapters_of(config)}


def adapters_of(config):
    """Short hashes of a GenerateConfig's adapters, each with its strength; None without adapters."""
    return ", ".join(f"{_of_folder(folder)[:16]} x {strength:g}" for folder, strength in config.used_adapters) or None


def _of_folder(folder):
    return fingerprint.of_files(sorted(Path(folder).iterdir()))
