"""What the worker makes of errors and of jobs that are cancelled; the pipeline pretends."""

from types import SimpleNamespace

import pytest

from ospnext_ms.generation.text_to_video import Interrupted
from ospnext_ms.serving import worker
from ospnext_ms.serving.requests import read_request


@pytest.fixture
def work(configure, desk, monkeypatch):
    """Function (what the pipeline does, signal) -> state and error of a job that a Worker took."""
    def work(videos, signal=0):
        monkeypatch.setattr(worker, "TextToVideo", lambda *_, **__: SimpleNamespace(videos=videos))
        interruption = SimpleNamespace(asked=0)
        maker = worker.Worker(configure(), None, desk, interruption)
        monkeypatch.setattr(maker, "_networks_of", lambda config: None)
        id = desk.submit(read_request({"prompt": "a"}, configure())).job.id
        job = desk.take(0)
        interruption.asked = signal
        maker._work(job)
        told = desk.view(id).job
        return told.state, told.error

    return work


@pytest.mark.parametrize("error", [ValueError("no\nmore"), KeyError("no"), RuntimeError("no"), OSError("no")])
def test_any_error_is_the_jobs_alone(work, error):
    def videos(**_):
        raise error

    assert work(videos) == ("failed", str(error).partition("\n")[0])


def test_cancelled_and_interrupted(work, desk):
    def cancelled(interruption, on_step):
        on_step()
        desk.cancel(desk.views()[-1].job.id)
        assert interruption.asked
        raise Interrupted(interruption.asked)

    def interrupted(interruption, on_step):
        raise Interrupted(interruption.asked)

    assert work(cancelled)[0] == "cancelled"
    assert work(interrupted, signal=15) == ("queued", None)
