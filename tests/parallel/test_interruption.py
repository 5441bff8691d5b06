"""Signals: the first is noted while work goes on, the second ends the process; so does one before any work."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.paths import ROOT

WORK = """
import signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
import numpy
from ospnext_ms.parallel.interruption import Interruption, exit_status
with Interruption() as interruption:
    print("up", flush=True)
    if sys.argv[1] == "early":
        time.sleep(30)
    interruption.begin()
    print("working", flush=True)
    while not interruption.asked:
        time.sleep(0.05)
    print("asked", interruption.asked, flush=True)
    if sys.argv[1] == "slow":
        time.sleep(30)
    sys.exit(exit_status(interruption.asked))
"""


def start(how, line):
    process = subprocess.Popen([sys.executable, "-c", WORK, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    while process.stdout.readline() != line + "\n":
        pass
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_is_noted_and_said(number, status):
    process = start("quick", "working")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert out == f"asked {int(number)}\n"
    assert f"{number.name}: the step is finished and saved" in err
    assert process.returncode == status


def test_a_signal_to_process_and_group_is_one():
    """As `timeout` sends it: twice in the same moment."""
    process = start("quick", "working")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert out == "asked 15\n"
    assert "ended at once" not in err
    assert process.returncode == 143


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_at_once(number):
    process = start("slow", "working")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "asked 15\n"
    time.sleep(0.4)
    began = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert f"{number.name}: ended at once" in err
    assert time.monotonic() - began < 10


def test_before_the_first_step_there_is_nothing_to_save():
    process = start("early", "up")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "SIGINT: ended before the first step" in err


def test_what_was_before_is_there_again():
    code = ("import signal\nfrom ospnext_ms.parallel.interruption import Interruption\n"
            "with Interruption(): pass\n"
            "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
            "assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
                          stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
