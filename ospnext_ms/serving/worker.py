"""Takes jobs from the desk and makes their videos, one after the other, with networks that stay loaded."""

import traceback

from ospnext_ms.generation.networks import Networks
from ospnext_ms.generation.text_to_video import Interrupted, TextToVideo
from ospnext_ms.runtime import release_memory
from ospnext_ms.serving.requests import config_of, job_of

POLL_SECONDS = 0.5


class Worker:
    """The process's one user of the device.

    Args:
        config: ServeConfig. runtime: runtime.Runtime. desk: serving.desk.Desk.
        interruption: parallel.interruption.Interruption; a signal ends `run`.
    """

    def __init__(self, config, runtime, desk, interruption):
        self._config, self._runtime, self._desk, self._interruption = config, runtime, desk, interruption
        self._networks = self._adapters = None

    def run(self):
        """Works until a signal comes; the job that is being made then is queued again, and left to the next server."""
        while not self._interruption.asked:
            job = self._desk.take(POLL_SECONDS)
            if job is not None:
                self._work(job)

    def _work(self, job):
        try:
            error = self._make(job)
        except Interrupted:
            if self._interruption.asked and not self._desk.is_stopped(job.id):
                self._desk.put_back(job.id)
                return
            error = "cancelled"
        self._desk.finish(job.id, error)

    def _make(self, job):
        """Writes a job's video; returns None, or what went wrong in a line."""
        try:
            config = config_of(job.settings, self._config)
            pipeline = TextToVideo(config, self._runtime, [job_of(job.settings, config, job.id)],
                                   networks=self._networks_of(config))
            steps = _Steps(self._desk, job.id, self._interruption)
            for video in pipeline.videos(interruption=steps, on_step=steps.count):
                video.write_to(self._desk.path(job.id), config.video.fps, config.video.crf)
        except Interrupted:
            raise
        except Exception as error:
            # Whatever it was, the next job may be without it; a job that ended the server would end every next one too.
            traceback.print_exc()
            return str(error).strip().partition("\n")[0] or type(error).__name__
        return None

    def _networks_of(self, config):
        """Those that are loaded, where they have the adapters that are asked for."""
        if self._networks is None or self._adapters != config.used_adapters:
            self._networks = None
            release_memory()
            self._networks = Networks(config, self._runtime, keeps_text_encoder=True)
            self._adapters = config.used_adapters
        return self._networks


class _Steps:
    """Stands for an Interruption: ends the denoising of a job that was cancelled, and counts its steps."""

    def __init__(self, desk, id, interruption):
        self._desk, self._id, self._interruption = desk, id, interruption
        self._done = 0

    @property
    def asked(self):
        return self._interruption.asked or int(self._desk.is_stopped(self._id))

    def begin(self):
        pass

    def count(self):
        self._done += 1
        self._desk.step(self._done)
