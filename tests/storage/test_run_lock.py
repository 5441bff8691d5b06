"""Two runs in one folder."""

import errno
import os
import subprocess
import sys

import pytest

from ospnext_ms.storage.run_lock import RunLock
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
