"""What the blocks add, measured over the steps of a few videos, for the step cache."""

from pathlib import Path

import numpy as np

from ospnext_ms.generation.checks import check_adapters, check_files, check_output_folder
from ospnext_ms.generation.noise import load_starting_noise
from ospnext_ms.generation.prompts import list_jobs
from ospnext_ms.generation.step_cache import calibration_of, write_calibration
from ospnext_ms.parallel.degrees import world_size


def calibrate(config, path):
    """Denoises the videos of a GenerateConfig, whose cache is off, and writes their Calibration; returns a line.

    Raises:
        FileNotFoundError, ValueError: something the configuration names is not there or does not fit; the file cannot
            be written; several processes, of which each would see a part of the tokens.
    """
    if world_size() > 1:
        raise ValueError("calibrate-cache runs in one process; start it without msrun")
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"--output is {path}, a folder; give a file, for example {path / 'calibration.json'}")
    check_output_folder(path.parent, "the folder of --output")
    jobs, _ = list_jobs(config)
    noise = load_starting_noise(config, len(jobs))
    check_files(config)
    check_adapters(config)

    from ospnext_ms.generation.text_to_video import TextToVideo
    from ospnext_ms.runtime import start

    ratios = [[] for _ in range(config.sampling.steps)]
    pipeline = TextToVideo(config, start(config.context), jobs, noise)
    for _ in pipeline.latents(ratios=ratios):
        pass
    means = [1.0, *(float(np.mean(of_step)) for of_step in ratios[1:])]
    write_calibration(path, calibration_of(config, means))
    return f"{path}: {len(means)} ratios from {min(means):.4f} to {max(means):.4f}, of {len(jobs)} videos"
