"""Jobs on disk: a folder each with job.json and, when it is made, video.mp4. No framework.

Files are complete or not there (storage.files), so that whatever ended the server it finds its jobs again.
"""

import json
import re
import secrets
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ospnext_ms.storage.files import atomic_path

State = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
FINISHED = ("completed", "failed", "cancelled")
_NAME = re.compile(r"video_[0-9a-f]{24}")


@dataclass(frozen=True)
class StoredJob:
    """One asked-for video. Times in seconds since 1970; `number` orders jobs as they were asked for."""

    id: str
    number: int
    settings: dict
    state: State
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    error: str | None = None


class JobStore:
    """The jobs of a folder. Not safe for threads; the desk keeps it under its lock.

    A job that was being made when the server ended is queued again; the folder of a job that cannot be read is left
    alone, and told of. Where the disk takes no new job none is accepted; where it does not take that a job went on, the
    server goes on nevertheless: the next one finds the job as it was before.

    Args:
        folder: where the jobs' folders are. keep: finished jobs that stay; of more those that finished first are
            removed.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = Path(folder)
        self._keep = keep
        self.folder.mkdir(parents=True, exist_ok=True)
        self.jobs = {job.id: job for job in sorted(self._read(), key=lambda job: job.number)}
        for job in list(self.jobs.values()):
            if job.state == "in_progress" or (job.state == "completed" and not self.video(job.id).is_file()):
                self.put(self._changed(job, state="queued", started_at=None, completed_at=None))

    def _read(self):
        for path in sorted(self.folder.iterdir()):
            if not _NAME.fullmatch(path.name):
                continue
            try:
                values = json.loads((path / "job.json").read_text(encoding="utf-8"))
                yield StoredJob(**values)
            except (OSError, ValueError, TypeError) as error:
                print(f"{path} is left out: it holds no job that can be read ({error})", file=sys.stderr)

    def new(self, settings: dict) -> StoredJob:
        """A queued job, on disk; OSError where it cannot be written, and then there is none."""
        number = 1 + max((job.number for job in self.jobs.values()), default=0)
        job = StoredJob(f"video_{secrets.token_hex(12)}", number, settings, "queued", time.time())
        try:
            return self.put(job)
        except OSError:
            shutil.rmtree(self.folder / job.id, ignore_errors=True)
            raise

    def change(self, id: str, **values) -> StoredJob:
        """The job with other values; on disk too, unless that cannot be written, which is told of."""
        job = self._changed(self.jobs[id], **values)
        try:
            return self.put(job)
        except OSError as error:
            print(f"{id} is {job.state}, but {self.folder / id} does not say so: {error}", file=sys.stderr)
            self.jobs[id] = job
            return job

    @staticmethod
    def _changed(job, **values):
        return StoredJob(**{**asdict(job), **values})

    def put(self, job: StoredJob) -> StoredJob:
        """Writes a job; removes what finished first beyond those that are kept."""
        with atomic_path(self.folder / job.id / "job.json") as path:
            path.write_text(json.dumps(asdict(job), indent=1) + "\n", encoding="utf-8")
        self.jobs[job.id] = job
        finished = sorted((other for other in self.jobs.values() if other.state in FINISHED),
                          key=lambda other: other.completed_at or 0)
        for other in finished[: max(len(finished) - self._keep, 0)]:
            self.remove(other.id)
        return job

    def remove(self, id: str) -> None:
        """Forgets a job and removes its folder."""
        del self.jobs[id]
        shutil.rmtree(self.folder / id, ignore_errors=True)

    def drop_video(self, id: str) -> None:
        """Removes what was written for a job that was cancelled or forgotten meanwhile."""
        self.video(id).unlink(missing_ok=True)
        if id not in self.jobs:
            shutil.rmtree(self.folder / id, ignore_errors=True)

    def video(self, id: str) -> Path:
        """Where the mp4 of a job is, or will be."""
        return self.folder / id / "video.mp4"
