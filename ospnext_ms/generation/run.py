"""Videos from prompts, and beside each of them what is needed to make it again."""

import dataclasses
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

import ospnext_ms
from ospnext_ms.data.pictures import contact_sheet, evenly_spaced, thumbnail, write_png
from ospnext_ms.data.video import write_grid
from ospnext_ms.generation.checks import check_adapter, check_files
from ospnext_ms.generation.noise import load_starting_noise
from ospnext_ms.generation.prompts import list_videos
from ospnext_ms.parallel.degrees import check_generation, world_size
from ospnext_ms.storage.files import atomic_path
from ospnext_ms.storage.fingerprint import of_whole_file

SHEET_COLUMNS = 8
# More rows or cells than these nobody can look at; of longer runs the first ones are shown.
MAX_SHEET_ROWS = 64
MAX_GRID_CELLS = 16


def generate(config):
    """Makes the videos of a GenerateConfig; returns the paths of all files that this process has written.

    Everything that can be known beforehand is checked first, what needs no MindSpore before MindSpore is loaded. Under
    msrun all processes call it; the leader of each video writes it, process 0 the overviews.

    Raises:
        FileNotFoundError, ValueError: something the configuration names is not there or does not fit; nothing has
            been written then.
        FloatingPointError: the network returned values that are not finite.
    """
    check_generation(config.parallel_config, config.model.dit, world_size())
    requests = list_videos(config)
    noise = load_starting_noise(config, len(requests))
    check_files(config)
    check_adapter(config)

    from ospnext_ms.generation.team import join
    from ospnext_ms.generation.text_to_video import TextToVideo
    from ospnext_ms.runtime import start

    runtime = start(config.context)
    team = join(config.parallel_config)
    _check_agreement(config, requests, team.mesh)
    paths, rows = [], {}
    pipeline = TextToVideo(config, runtime, [request.prompt for request in requests], noise, team)
    for video in pipeline.videos():
        request = requests[video.index]
        path = Path(config.output_dir) / f"{request.stem}.mp4"
        video.write_to(path, config.video.fps, config.video.crf)
        paths += [path, _write_record(path.with_suffix(".json"), config, runtime, request, video.timings)]
        if video.index < MAX_SHEET_ROWS:
            rows[video.index] = [thumbnail(video.frames[i]) for i in _sheet_frames(config)]
    if team.mesh.size > 1:
        rows = _gather_rows(config, team.mesh, min(len(requests), MAX_SHEET_ROWS), rows)
    return paths + (_write_overviews(config, requests, rows) if team.mesh.rank == 0 else [])


def _check_agreement(config, requests, mesh):
    """ValueError, on all processes, where they were given other settings, prompts or noise."""
    from ospnext_ms.parallel.agreement import check_agreement

    noise = config.sampling.starting_noise
    check_agreement(mesh.world_group, dataclasses.asdict(config) | {
        "the list of prompts": [request.prompt for request in requests],
        "contents of sampling.starting_noise": noise and of_whole_file(noise)})


def _sheet_frames(config):
    return evenly_spaced(config.video.frames, SHEET_COLUMNS)


def _gather_rows(config, mesh, count, rows):
    """The thumbnails of the first `count` videos on every process, once all of them have written their videos."""
    from mindspore import Tensor

    from ospnext_ms.kernels.collectives import AllReduceSum

    shape = thumbnail(np.zeros((config.video.height, config.video.width, 3), np.uint8)).shape
    own = np.zeros((count, len(_sheet_frames(config)), *shape), np.float32)
    for index, thumbnails in rows.items():
        own[index] = thumbnails
    everyones = AllReduceSum(mesh.world_group)(Tensor(own), "thumbnails").asnumpy().astype(np.uint8)
    return dict(enumerate(everyones))


def _write_overviews(config, requests, rows):
    """Contact sheet and, of several videos, the grid; rows are {index of a video: its thumbnails}."""
    folder = Path(config.output_dir)
    sheet = folder / "contact_sheet.png"
    captions = [f"{index}: {requests[index].prompt}" for index in sorted(rows)]
    write_png(sheet, contact_sheet([rows[index] for index in sorted(rows)], captions, SHEET_COLUMNS))
    if len(requests) == 1:
        return [sheet]
    grid = folder / "grid.mp4"
    members = [folder / f"{request.stem}.mp4" for request in requests[:MAX_GRID_CELLS]]
    write_grid(grid, members, config.video.fps, config.video.crf)
    return [sheet, grid]


def _write_record(path, config, runtime, request, timings):
    """Writes beside a video what is needed to make it again; returns `path`."""
    sampling = config.sampling
    record = {
        "prompt": request.prompt,
        "negative_prompt": sampling.negative_prompt if sampling.guidance != 1 else None,
        "seed": sampling.seed if sampling.starting_noise is None else None,
        "index": request.index,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": runtime.device,
        "dtype": runtime.dtype_name,
        "seconds": {name: round(seconds, 3) for name, seconds in timings.items()},
        "versions": {"ospnext_ms": ospnext_ms.__version__, "mindspore": version("mindspore"),
                     "numpy": np.__version__, "python": platform.python_version()},
        "configuration": dataclasses.asdict(config),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return path
