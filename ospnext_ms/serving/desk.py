"""Where clients and the worker meet: a bounded queue, one job at a time, its progress. Safe for threads."""

import threading
import time
from dataclasses import dataclass

from ospnext_ms.serving.store import FINISHED, JobStore, StoredJob

# Seconds that a client is told to wait where no job has been made yet to measure by.
FIRST_GUESS = 60.0


class QueueFull(Exception):
    """No room for another job; `seconds` until there will be, as far as can be told."""

    def __init__(self, length: int, seconds: float):
        super().__init__(f"the queue is full ({length} jobs wait); try again in {max(1, round(seconds))} seconds")
        self.seconds = seconds


class CannotKeep(Exception):
    """A job that cannot be written, so that a restart would lose it."""


@dataclass(frozen=True)
class View:
    """A job as it is told: `progress` from 0 to 1, `position` in the queue (0: is being made, or finished),
    `seconds_left` until it is ready (None: not known, or finished)."""

    job: StoredJob
    progress: float
    position: int
    seconds_left: float | None


class Desk:
    """The jobs of a JobStore for those who ask and for the one worker.

    Args:
        store: JobStore. length: jobs that wait at most.
    """

    def __init__(self, store: JobStore, length: int):
        self._store, self._length = store, length
        self._lock = threading.Condition()
        self._steps_done = 0
        self._stopped: set[str] = set()
        self._speed: float | None = None

    def submit(self, settings: dict) -> View:
        """Queues a job; QueueFull where no more may wait, CannotKeep where the disk takes no more."""
        with self._lock:
            waiting = self._waiting()
            if len(waiting) >= self._length:
                raise QueueFull(len(waiting), self._until_room())
            try:
                job = self._store.new(settings)
            except OSError as error:
                reason = error.strerror or error
                raise CannotKeep(f"the server cannot write the job: {reason}; try again later") from error
            self._lock.notify_all()
            return self._view(job)

    def view(self, id: str) -> View | None:
        """A job, None where there is none of that name."""
        with self._lock:
            return self._view(self._store.jobs[id]) if id in self._store.jobs else None

    def views(self) -> list[View]:
        """All jobs, in the order in which they were asked for."""
        with self._lock:
            return [self._view(job) for job in self._store.jobs.values()]

    def video(self, id: str):
        """Path of a finished job's mp4, None where there is none."""
        with self._lock:
            job = self._store.jobs.get(id)
            return self._store.video(id) if job and job.state == "completed" else None

    def cancel(self, id: str) -> bool:
        """Ends a job that waits or is being made, after its step; whether there is such a job."""
        with self._lock:
            job = self._store.jobs.get(id)
            if job is None or job.state in FINISHED:
                return False
            if job.state == "in_progress":
                self._stopped.add(id)
            self._store.change(id, state="cancelled", completed_at=time.time())
            return True

    def delete(self, id: str) -> bool:
        """Cancels a job and forgets it and its video; whether there was one."""
        self.cancel(id)
        with self._lock:
            if id not in self._store.jobs:
                return False
            self._store.remove(id)
            return True

    # What the worker calls.

    def take(self, seconds: float) -> StoredJob | None:
        """The next job, now in progress; None where none came in time."""
        with self._lock:
            self._lock.wait_for(self._waiting, seconds)
            waiting = self._waiting()
            if not waiting:
                return None
            self._steps_done = 0
            return self._store.change(waiting[0].id, state="in_progress", started_at=time.time())

    def step(self, steps_done: int) -> None:
        """Notes how far the job in progress is."""
        with self._lock:
            self._steps_done = steps_done

    def is_stopped(self, id: str) -> bool:
        """Whether the job in progress has been cancelled."""
        with self._lock:
            return id in self._stopped

    def path(self, id: str):
        """Where the video of the job in progress is to be written."""
        return self._store.video(id)

    def finish(self, id: str, error: str | None = None) -> None:
        """Notes that a job's video is on disk, or what went wrong; nothing of a job that was cancelled meanwhile."""
        with self._lock:
            self._stopped.discard(id)
            job = self._store.jobs.get(id)
            if job is None or job.state != "in_progress":
                self._store.drop_video(id)
                return
            now = time.time()
            if error is None:
                self._speed = (now - (job.started_at or now)) / _work(job)
            self._store.change(id, state="failed" if error else "completed", completed_at=now, error=error)

    def put_back(self, id: str) -> None:
        """Queues the job in progress again, for a server that starts later."""
        with self._lock:
            self._stopped.discard(id)
            if id in self._store.jobs and self._store.jobs[id].state == "in_progress":
                self._store.change(id, state="queued", started_at=None)

    # Under the lock.

    def _waiting(self):
        return [job for job in self._store.jobs.values() if job.state == "queued"]

    def _view(self, job):
        progress, position, left = float(job.state == "completed"), 0, None
        if job.state == "in_progress":
            progress, left = self._steps_done / job.settings["steps"], self._left(job)
        elif job.state == "queued":
            waiting = self._waiting()
            position = 1 + next(i for i, other in enumerate(waiting) if other.id == job.id)
            parts = [self._left(other) for other in (*self._running(), *waiting[:position])]
            left = None if None in parts else sum(parts)
        return View(job, progress, position, left)

    def _running(self):
        return [job for job in self._store.jobs.values() if job.state == "in_progress"]

    def _left(self, job):
        """Seconds that a job will still take, by the speed of the last one; None before there was one."""
        if self._speed is None:
            return None
        share = self._steps_done / job.settings["steps"] if job.state == "in_progress" else 0
        return self._speed * _work(job) * (1 - share)

    def _until_room(self):
        """Seconds until the job in progress is done, and the first one that waits begins."""
        parts = [self._left(job) for job in self._running() or self._waiting()[:1]]
        return FIRST_GUESS if None in parts else sum(parts)


def _work(job):
    """What a job's time grows with: calls of the network times the size of the video."""
    width, height = map(int, job.settings["size"].split("x"))
    branches = 1 if job.settings["guidance"] == 1 else 2
    return branches * job.settings["steps"] * width * height * job.settings["frames"]
