"""Starts real workers with msrun and waits for them."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from tests.support.paths import ROOT

TIMEOUT_SECONDS = 550


def environment():
    """The environment of workers: this interpreter first on the path, few threads, the repository importable."""
    bin_folder = str(Path(sys.executable).parent)
    changes = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
               "GLOG_v": "3"}
    return os.environ | changes


def msrun_command(num_workers, log_folder, *command):
    """`python COMMAND` in `num_workers` processes of this machine."""
    return ["msrun", f"--worker_num={num_workers}", f"--local_worker_num={num_workers}", "--join=True",
            f"--master_port={_free_port()}", f"--log_dir={log_folder}", "python", *command]


def run_workers(num_workers, folder, *command):
    """Runs `python COMMAND` in `num_workers` processes; returns (exit status, output of all workers)."""
    logs = Path(folder) / "logs"
    job = subprocess.Popen(msrun_command(num_workers, logs, *command), env=environment(), cwd=ROOT, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        said = job.communicate(timeout=TIMEOUT_SECONDS)[0]
    except subprocess.TimeoutExpired:
        end(job)
        said = f"not done after {TIMEOUT_SECONDS} s"
    output = "".join(path.read_text(errors="replace") for path in sorted(logs.glob("worker_*.log")))
    return job.returncode, f"{said}\n{output}"


def end(job):
    """Kills msrun and the processes it started."""
    for process in [*psutil.Process(job.pid).children(recursive=True), job]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    job.wait()


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
