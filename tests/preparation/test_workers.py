"""Work in processes: results in order, errors passed on, and dead processes survived."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from ospnext_ms.preparation.workers import map_in_order


def square_or_die(number, deadly=()):
    if number in deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def refuse(number):
    if number == 2:
        raise ValueError("no twos")
    return number


def died(number):
    return f"{number} died"


def test_results_come_in_order_whatever_dies():
    results = list(map_in_order(partial(square_or_die, deadly=(0, 4)), range(7), 2, died))
    assert results == ["0 died", 1, 4, 9, "4 died", 25, 36]


def test_without_processes():
    results = map_in_order(square_or_die, iter(range(3)), 0, died)
    assert next(results) == 0
    assert list(results) == [1, 4]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_are_passed_on(workers):
    results = map_in_order(refuse, [1, 2, 3], workers, died)
    assert next(results) == 1
    with pytest.raises(ValueError, match="no twos"):
        next(results)


PARENT = """
import os
import time
from ospnext_ms.preparation.workers import map_in_order

def report_and_wait(number):
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    next(map_in_order(report_and_wait, [1, 2], 1, None))
"""


def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while _is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(worker)


def _is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
