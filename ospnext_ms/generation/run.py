"""Videos from prompts or from a list of jobs, and beside each of them what is needed to make it again.

What is complete in the folder stays and is not made again, so that a run may be stopped and shared at will.
"""

import dataclasses
import platform
import signal
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np

import ospnext_ms
from ospnext_ms.generation.checks import check_adapters, check_files, check_output_folder
from ospnext_ms.generation.folder import refusal
from ospnext_ms.generation.identity import Identity, contents_of
from ospnext_ms.generation.jobs import batches_of
from ospnext_ms.generation.noise import load_starting_noise
from ospnext_ms.generation.overviews import write_overviews
from ospnext_ms.generation.prompts import list_jobs, output_folder
from ospnext_ms.generation.step_cache import reused_steps_of
from ospnext_ms.parallel.degrees import check_generation, world_size
from ospnext_ms.parallel.interruption import exit_status
from ospnext_ms.reporting.profile import SamplingTrace, table
from ospnext_ms.storage.run_lock import RunLock


def generate(config, *, index=None, **options):
    """Makes the videos of a GenerateConfig that are not there yet; returns as make_videos does, with its options.

    Args:
        index: makes the video of this index alone, whether it is there or not.

    Raises:
        As make_videos; FileNotFoundError, ValueError too for prompts that are not there or no prompts (see list_jobs).
    """
    jobs, repeated = list_jobs(config)
    again = None
    if index is not None:
        again = {job.name for job in jobs if job.index == index}
        if not again:
            raise ValueError(f"no video has the index {index}; there are {min(job.index for job in jobs)} to "
                             f"{max(job.index for job in jobs)}")
    if repeated:
        print(f"{repeated} lines of {config.prompts.prompt_file} repeat earlier ones; their videos are made once",
              file=sys.stderr)
    return make_videos(config, jobs, output_folder(config), again=again, **options)


def make_videos(config, jobs, folder, *, part=(0, 1), again=None, overwrite=False, interruption=None,
                profile=False):
    """Makes those videos of a list that are not complete in a folder; returns the paths of the files.

    Of several processes each returns what it has written, the first one also what was complete.

    Everything that can be known beforehand is checked first, what needs no MindSpore before MindSpore is loaded. Under
    msrun all processes call it; the leader of each video writes it. Who makes the list complete writes the overviews.

    Args:
        config: GenerateConfig, whose prompts and naming are not looked at. jobs: list of generation.jobs.Job, of
            different names. folder: generation.folder.Folder.
        part: (i, n), this run makes the batches i, i + n, ... of the list; others make the rest, meanwhile or later.
        again: names of the jobs to make, whether complete or not; None for all those that are not.
        overwrite: make those again, too, that were made with other settings, instead of refusing the folder.
        interruption: parallel.interruption.Interruption, None where signals are somebody else's.
        profile: whether a trace of two sampling steps and a table of what the first video took are made.

    Raises:
        FileNotFoundError, ValueError: something the configuration names is not there or does not fit; the folder is in
            use, or holds videos made otherwise. Nothing has been written then.
        FloatingPointError: a network returned values that are not finite.
        SystemExit: a signal asked for an end; what is complete stays.
    """
    assert len({job.name for job in jobs}) == len(jobs), "two videos of one name"
    noise = _check_beforehand(config, jobs, folder)

    from ospnext_ms.generation.team import join
    from ospnext_ms.generation.text_to_video import TextToVideo
    from ospnext_ms.parallel.agreement import Highest, decided_by_first
    from ospnext_ms.runtime import start

    runtime = start(config.context)
    team = join(config.parallel_config)
    identity = Identity(config, contents_of(config), {"device": runtime.device, "dtype": runtime.dtype_name})
    _check_agreement(identity, jobs, part, team.mesh)
    pipeline = TextToVideo(config, runtime, jobs, noise, team)
    batches = batches_of(jobs, config.sampling.batch_size)[part[0] :: part[1]]
    mine = [job for batch in batches for job in batch]
    with ExitStack() as stack:
        chosen = decided_by_first(team.mesh.world_group, len(jobs), lambda: _open(
            stack, folder, jobs, mine, again, overwrite, part, identity))
        todo = {job.name for job, is_chosen in zip(jobs, chosen, strict=True) if is_chosen}
        batches = [batch for batch in batches if any(job.name in todo for job in batch)]
        written = _write_videos(pipeline, batches[team.lane :: team.lanes], todo, folder, identity, interruption,
                                profile)
        # Until all have written what they make.
        Highest(team.mesh.world_group)(0)
        if not team.mesh.reports:
            return written
        complete = [job for job in mine if job.name not in todo] if again is None else []
        return [*(path for job in complete for path in (folder.video(job), folder.record(job))), *written,
                *_close(folder, jobs, config.video)]


def _check_beforehand(config, jobs, folder):
    """What can be checked without MindSpore; returns the starting noise that is given, None where it is drawn."""
    check_generation(config.parallel_config, config.model.dit, world_size())
    noise = load_starting_noise(config, len(jobs))
    check_files(config)
    for path in (folder.videos, folder.records):
        check_output_folder(path)
    check_adapters(config)
    reused_steps_of(config)
    return noise


def _write_videos(pipeline, batches, todo, folder, identity, interruption, profile):
    """Makes the videos `todo` (names) of this lane's batches; returns the paths of what this process has written."""
    from ospnext_ms.generation.text_to_video import Interrupted

    config, team = pipeline.config, pipeline.team
    trace = None
    if profile and batches:
        trace = SamplingTrace(folder.records, team.mesh.rank, config.sampling.steps * len(batches))
    paths, seconds = [], {}
    try:
        for video in pipeline.videos(batches, todo, interruption, trace):
            seconds = seconds or video.timings
            folder.begin(video.job)
            video.write_to(folder.video(video.job), config.video.fps, config.video.crf)
            paths += [folder.video(video.job), folder.finish(video.job, _record(video, identity, pipeline.runtime))]
    except Interrupted as stop:
        _leave(stop.number, folder, pipeline.jobs, team)
    if trace and team.is_leader:
        _tell_profile(seconds, trace.stop())
    return paths


def _tell_profile(seconds, path):
    print("\n".join(["seconds of the first video:", *table(seconds)]))
    print(f"trace: {path}" if path else "the profiler wrote no trace", flush=True)


def _check_agreement(identity, jobs, part, mesh):
    """ValueError, on all processes, where they were given other settings, files or jobs."""
    from ospnext_ms.parallel.agreement import check_agreement

    check_agreement(mesh.world_group, dataclasses.asdict(identity.config) | identity.contents | {
        "the list of videos": [dataclasses.asdict(job) for job in jobs], "--part": part})


def _open(stack, folder, jobs, mine, again, overwrite, part, identity):
    """Takes the folder for this run and makes room in it; returns for each job whether it is to be made.

    Raises ValueError where the folder is in use or holds what was made otherwise.
    """
    stack.enter_context(RunLock(folder.records, part))
    asked, others = folder.differing(mine, identity)
    if (asked or others) and not overwrite:
        raise ValueError(refusal(folder, asked, others))
    todo = {job.name for job in folder.missing(mine)} | asked.keys() if again is None else again
    if again is None and len(todo) < len(mine):
        print(f"{len(mine) - len(todo)} of {len(mine)} videos are complete in {folder.videos}", file=sys.stderr)
    if todo:
        folder.remove_overviews()
    folder.remove_leftovers(mine, part == (0, 1))
    return [job.name in todo for job in jobs]


def _leave(number, folder, jobs, team):
    """Ends this process as a signal asks for, with a line that tells what there is."""
    if team.is_leader:
        complete = len(jobs) - len(folder.missing(jobs))
        print(f"{signal.Signals(number).name}: {complete} of {len(jobs)} videos are complete in {folder.videos}; the "
              "same command goes on from there", file=sys.stderr, flush=True)
    raise SystemExit(exit_status(number)) from None


def _close(folder, jobs, video):
    """Writes the overviews where no video is missing; returns their paths."""
    missing = len(folder.missing(jobs))
    if missing:
        print(f"{missing} of {len(jobs)} videos are not there yet", file=sys.stderr)
        return []
    return write_overviews(folder, jobs, video)


def _record(video, identity, runtime):
    """What is needed to make a video again."""
    return {
        **video.job.about,
        **identity.fields_of(video.job),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": runtime.device,
        "dtype": runtime.dtype_name,
        "seconds": {name: round(seconds, 3) for name, seconds in video.timings.items()},
        "versions": {"ospnext_ms": ospnext_ms.__version__, "mindspore": version("mindspore"),
                     "numpy": np.__version__, "python": platform.python_version()},
        "contents": identity.contents,
        "configuration": dataclasses.asdict(identity.config),
    }
