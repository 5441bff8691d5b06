"""The queue and its jobs on disk."""

import json
import threading

import pytest

from ospnext_ms.serving.desk import CannotKeep, Desk, QueueFull
from ospnext_ms.serving.store import JobStore

SETTINGS = {"prompt": "a", "steps": 4, "guidance": 3.0, "size": "64x64", "frames": 5, "fps": 8}


def make(desk, error=None):
    """What a worker does with the next job."""
    job = desk.take(0)
    if error is None:
        desk.path(job.id).write_bytes(b"mp4")
    desk.finish(job.id, error)
    return job.id


def test_jobs_are_made_in_their_order_and_told_of(desk):
    first, second = desk.submit(SETTINGS), desk.submit(SETTINGS)
    assert [view.position for view in (first, second)] == [1, 2]
    with pytest.raises(QueueFull, match="the queue is full"):
        desk.submit(SETTINGS)
    taken = desk.take(0)
    assert taken.id == first.job.id
    assert desk.view(second.job.id).position == 1
    desk.step(3)
    assert desk.view(taken.id).progress == 0.75
    desk.path(taken.id).write_bytes(b"mp4")
    desk.finish(taken.id)
    view = desk.view(taken.id)
    assert (view.job.state, view.progress) == ("completed", 1)
    assert desk.video(taken.id).read_bytes() == b"mp4"
    assert desk.view(second.job.id).seconds_left is not None


def test_cancelled_and_deleted(desk):
    waits, runs = desk.submit(SETTINGS).job.id, desk.submit(SETTINGS).job.id
    assert desk.cancel(waits)
    assert not desk.cancel(waits)
    job = desk.take(0)
    assert job.id == runs
    assert desk.delete(runs)
    assert desk.is_stopped(runs)
    desk.path(runs).parent.mkdir(exist_ok=True)
    desk.path(runs).write_bytes(b"late")
    desk.finish(runs)
    assert desk.view(runs) is None
    assert not desk.path(runs).parent.exists()
    assert not desk.delete("video_none")
    assert desk.take(0) is None


def test_jobs_are_found_again(tmp_path):
    desk = Desk(JobStore(tmp_path, keep=9), length=9)
    ids = [desk.submit(SETTINGS).job.id for _ in range(5)]
    make(desk)
    make(desk, "it broke")
    desk.take(0)
    desk.cancel(ids[3])
    (tmp_path / ids[4] / "job.json").write_text("{")
    again = Desk(JobStore(tmp_path, keep=9), length=9)
    assert {view.job.id: view.job.state for view in again.views()} == dict(zip(ids, (
        "completed", "failed", "queued", "cancelled"), strict=False))
    assert again.take(0).id == ids[2]
    assert (tmp_path / ids[4] / "job.json").read_text() == "{"


def test_the_oldest_finished_ones_go(desk, tmp_path):
    ids = []
    for _ in range(5):
        desk.submit(SETTINGS)
        ids.append(make(desk))
    assert [view.job.id for view in desk.views()] == ids[-3:]
    assert {path.name for path in (tmp_path / "jobs").iterdir()} == set(ids[-3:])


def test_a_video_that_took_long_outlasts_what_was_cancelled_meanwhile(tmp_path):
    desk = Desk(JobStore(tmp_path, keep=1), length=9)
    made, cancelled = desk.submit(SETTINGS).job.id, desk.submit(SETTINGS).job.id
    desk.take(0)
    desk.cancel(cancelled)
    desk.path(made).write_bytes(b"mp4")
    desk.finish(made)
    assert [view.job.id for view in desk.views()] == [made]
    assert desk.video(made).read_bytes() == b"mp4"


def test_a_signal_leaves_the_job_to_the_next_server(desk, tmp_path):
    id = desk.submit(SETTINGS).job.id
    desk.put_back(desk.take(0).id)
    assert json.loads((tmp_path / "jobs" / id / "job.json").read_text())["state"] == "queued"
    assert desk.take(0).id == id


def test_a_full_disk_takes_no_job_and_keeps_those_it_has(desk, full_disk, tmp_path, capsys):
    first = desk.submit(SETTINGS).job.id
    full_disk(True)
    with pytest.raises(CannotKeep, match="No space left on device"):
        desk.submit(SETTINGS)
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == [first]
    assert make(desk) == first
    assert desk.view(first).job.state == "completed"
    assert f"{first} is completed, but" in capsys.readouterr().err
    again = JobStore(tmp_path / "jobs", keep=3)
    assert again.jobs[first].state == "queued"
    full_disk(False)
    second = desk.submit(SETTINGS).job.id
    assert make(desk) == second


def test_many_clients_at_once(tmp_path):
    """Every one of 50 is either taken or told to wait; of those taken none is lost."""
    desk, taken, refused, done = Desk(JobStore(tmp_path, keep=99), length=8), [], [], []

    def ask():
        try:
            taken.append(desk.submit(SETTINGS).job.id)
        except QueueFull as error:
            refused.append(error.seconds)

    def work():
        while len(done) < len(taken) or any(thread.is_alive() for thread in clients):
            job = desk.take(0.05)
            if job:
                desk.path(job.id).write_bytes(b"mp4")
                desk.finish(job.id)
                done.append(job.id)

    clients = [threading.Thread(target=ask) for _ in range(50)]
    worker = threading.Thread(target=work)
    for thread in (*clients, worker):
        thread.start()
    for thread in (*clients, worker):
        thread.join(60)
    assert len(taken) + len(refused) == 50
    assert refused
    assert all(seconds > 0 for seconds in refused)
    assert sorted(done) == sorted(taken)
