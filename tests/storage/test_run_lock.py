"""Two runs in one folder."""

import errno
import os
import subprocess
import sys

import pytest

from ospnext_ms.storage import run_lock
from ospnext_ms.storage.run_lock import LOCK, RunLock
from tests.support.paths import ROOT

HOLD = """
import sys
from ospnext_ms.storage.run_lock import RunLock
lock = RunLock(sys.argv[1])
print("held", flush=True)
input()
"""


def test_the_second_is_refused_until_the_first_has_ended(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert first.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=rf"is in use by process {first.pid} on .*another output_dir"):
        RunLock(tmp_path)
    first.kill()
    first.wait()
    RunLock(tmp_path)
    # The process that has it may ask again.
    RunLock(tmp_path)


def test_a_full_disk_is_told_with_the_path(tmp_path, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("socket.gethostname", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*\.run\.lock'"):
        RunLock(tmp_path)


def held(folder, part="(0, 1)"):
    code = HOLD.replace("RunLock(sys.argv[1])", f"RunLock(sys.argv[1], {part})")
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.stdout.readline() == "held\n"
    return process


def test_parts_share_a_folder(tmp_path):
    second = held(tmp_path, "(1, 2)")
    try:
        for part in ((1, 2), (0, 1)):
            with pytest.raises(ValueError, match=f"is in use by process {second.pid}"):
                RunLock(tmp_path, part)
        with RunLock(tmp_path, (0, 2)):
            pass
        # The other part still has it.
        assert (tmp_path / LOCK).exists()
        with pytest.raises(ValueError, match="is in use by"):
            RunLock(tmp_path)
    finally:
        second.kill()
        second.wait()
    with RunLock(tmp_path):
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_a_lock_that_was_released_meanwhile_is_none(tmp_path, monkeypatch):
    """The file that was opened is removed by its last owner before it is locked: two would have the folder."""
    lock, calls = run_lock.RunLock._lock, []

    def late(self, part):
        if not calls:
            (tmp_path / LOCK).unlink()
        calls.append(part)
        lock(self, part)

    monkeypatch.setattr(run_lock.RunLock, "_lock", late)
    with RunLock(tmp_path):
        assert len(calls) == 2
        assert (tmp_path / LOCK).exists()
