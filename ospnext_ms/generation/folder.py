"""A folder of generated videos: where the files of a job lie, which videos are complete, and which were made otherwise.

A video is complete when its mp4 and its record are there and belong together. The record, a JSON file, is written last
and says what the video was made from. No framework.
"""

import hashlib
import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path

from ospnext_ms.storage.files import atomic_path, remove_leftovers

SHEET, GRID = "contact_sheet.png", "grid.mp4"
# More differences than these nobody reads.
_MAX_LINES = 20


class Folder:
    """Where a run's results lie.

    Args:
        videos: folder of the mp4 files. records: folder of everything else, by default the same. VBench lists the
            folder of the videos and must find nothing else in it.
    """

    def __init__(self, videos, records=None):
        self.videos = Path(videos)
        self.records = self.videos if records is None else Path(records)
        self.sheet, self.grid = self.records / SHEET, self.records / GRID

    def video(self, job):
        """Path of a Job's mp4."""
        return self.videos / f"{job.name}.mp4"

    def record(self, job):
        """Path of the JSON file that says how it was made."""
        return self.records / f"{job.name}.json"

    def missing(self, jobs):
        """Those of the jobs whose video is not complete, whatever the others were made from."""
        return [job for job in jobs if self._record_of_complete(job) is None]

    def differing(self, jobs, identity):
        """What was made otherwise: ({job name: [line]}, {name of another record: [line]}).

        A line names a key with both values. Of jobs only those count whose video is complete; of other videos only the
        settings, not the prompts.

        Args:
            identity: identity.Identity of the run that asks.
        """
        asked, others = {}, {}
        for job in jobs:
            record = self._record_of_complete(job)
            if record is not None:
                asked[job.name] = identity.differences_of_run(record) + identity.differences_of_job(record, job)
        names = {job.name for job in jobs}
        for path in sorted(self.records.glob("*.json")) if self.records.is_dir() else []:
            record = _read_record(path)
            if path.stem not in names and record is not None:
                others[path.stem] = identity.differences_of_run(record)
        return {name: lines for name, lines in asked.items() if lines}, \
            {name: lines for name, lines in others.items() if lines}

    def begin(self, job):
        """Takes away what an earlier video of this name left, so that nothing is taken for complete meanwhile."""
        self.record(job).unlink(missing_ok=True)

    def finish(self, job, record):
        """Writes the record of a video whose mp4 is written; returns its path."""
        video = self.video(job)
        with open(video, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        record = record | {"video": {"bytes": video.stat().st_size, "sha256": digest}}
        with atomic_path(self.record(job)) as temporary:
            temporary.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        return self.record(job)

    def remove_overviews(self):
        """Removes contact sheet and grid, which would show videos that are made anew."""
        for path in (self.sheet, self.grid):
            path.unlink(missing_ok=True)

    def remove_leftovers(self, jobs, overviews):
        """Removes what killed runs have left half-written of the files of these jobs and of the overviews."""
        remove_leftovers([*map(self.video, jobs), *map(self.record, jobs),
                          *([self.sheet, self.grid] if overviews else [])])

    def _record_of_complete(self, job):
        record, video = _read_record(self.record(job)), self.video(job)
        if record is None or not video.is_file():
            return None
        size = record.get("video", {}).get("bytes")
        return record if size is None or size == video.stat().st_size else None


def refusal(folder, asked, others):
    """The error of a run whose folder holds videos that were made otherwise (see Folder.differing)."""
    names = defaultdict(list)
    for name, lines in {**asked, **others}.items():
        for line in lines:
            names[line].append(name)
    told = [f"{line} ({_count(several)})" for line, several in names.items()]
    if len(told) > _MAX_LINES:
        told = [*told[:_MAX_LINES], f"and {len(told) - _MAX_LINES} more"]
    return (f"{folder.videos} holds videos that were made otherwise; set these back to go on there, give another "
            "output_dir, or replace them with --overwrite:\n" + "\n".join(told))


def _count(names):
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _read_record(path):
    """What a record says, None where there is none or it is something else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("configuration"), dict) else None


def ignores_case(folder):
    """Whether the file system on which a folder is, or will be, takes upper and lower case for the same."""
    folder = Path(folder).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    try:
        with tempfile.NamedTemporaryFile(prefix=".case_", dir=existing) as probe:
            return os.path.exists(os.path.join(existing, os.path.basename(probe.name).swapcase()))
    except OSError:
        return False
