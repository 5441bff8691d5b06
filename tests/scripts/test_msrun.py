"""scripts/msrun.sh with a stand-in for msrun: whose paths, which port, and what becomes of signals."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.support.paths import ROOT

MSRUN = """#!{python}
import os, subprocess, sys, time
print("folder", os.getcwd(), "arguments", *sys.argv[1:], flush=True)
if os.environ.get("WORKERS"):
    roles = ["MS_SCHED"] + ["MS_WORKER"] * int(os.environ["WORKERS"])
    jobs = [subprocess.Popen([sys.executable, "-c", {worker!r}, str(i)], env=os.environ | {{"MS_ROLE": role}},
                             start_new_session=True) for i, role in enumerate(roles)]
    codes = [job.wait() for job in jobs[1:]]
    jobs[0].kill()
    print("codes", *codes, flush=True)
    sys.exit(1)
"""
WORKER = """
import os, signal, sys, time
def end(number, frame):
    time.sleep(0.3)
    os.write(1, f"ended {sys.argv[1]} {number}\\n".encode())
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
os.write(1, f"up {sys.argv[1]}\\n".encode())
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Function (folder, config, command, **environment) -> the running script."""
    bin_folder = tmp_path / "venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "python").symlink_to(sys.executable)
    (bin_folder / "msrun").write_text(MSRUN.format(python=sys.executable, worker=WORKER))
    (bin_folder / "msrun").chmod(0o755)

    def start(folder, config, command="train", **environment):
        values = os.environ | {"OSPNEXT_VENV": str(tmp_path / "venv")} | environment
        return subprocess.Popen(["bash", str(ROOT / "scripts" / "msrun.sh"), command, config, "1", "2"], cwd=folder,
                                env=values, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    return start


def test_paths_are_those_of_the_callers_folder(start, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.yaml").write_text("a: 1")
    job = start(tmp_path / "mine", "run.yaml")
    out, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    assert f"folder {tmp_path / 'mine'} " in out
    assert out.rstrip().endswith("python -m ospnext_ms train --config run.yaml")
    assert start(tmp_path / "mine", "run.yaml", "vbench generate").communicate(timeout=60)[0].rstrip().endswith(
        "python -m ospnext_ms vbench generate --config run.yaml")
    job = start(tmp_path, "run.yaml")
    assert job.communicate(timeout=60)[1].startswith("error: no configuration file run.yaml (current folder")
    assert job.returncode == 2


@pytest.mark.parametrize("is_left", [False, True], ids=["in use", "just left"])
def test_a_port_that_is_taken_is_told_at_once(start, tmp_path, is_left):
    (tmp_path / "run.yaml").write_text("a: 1")
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        if is_left:
            with socket.create_connection(("127.0.0.1", port)):
                taken.accept()[0].close()
            taken.close()
        began = time.monotonic()
        job = start(tmp_path, "run.yaml", MASTER_PORT=str(port))
        out, err = job.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert job.returncode == 2
    assert out == ""
    assert err.startswith(f"error: MASTER_PORT {port} cannot be used (OSError: [Errno 98] Address already in use")


def test_runs_on_one_host_get_ports_of_their_own(start, tmp_path):
    (tmp_path / "run.yaml").write_text("a: 1")
    said = [start(tmp_path, "run.yaml").communicate(timeout=60)[0] for _ in range(3)]
    ports = {re.search(r"--master_port=(\d+)", out)[1] for out in said}
    assert len(ports) == 3
    assert all(int(port) > 1023 for port in ports)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_reach_the_workers_and_nobody_else(start, tmp_path, number, status):
    (tmp_path / "run.yaml").write_text("a: 1")
    job = start(tmp_path, "run.yaml", WORKERS="2")
    up = {job.stdout.readline() for _ in range(4)}
    assert {"up 0\n", "up 1\n", "up 2\n"} < up
    job.send_signal(number)
    out, _ = job.communicate(timeout=60)
    assert sorted(line for line in out.splitlines() if line.startswith("ended")) == [
        f"ended 1 {number.value}", f"ended 2 {number.value}"]
    assert f"codes {status} {status}" in out
    assert job.returncode == status
