"""Starts a case in a process of its own, on the stubs, and reads what it tells."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.ascend_dry_run.report import Report, read_report
from tools.ascend_dry_run.stubs import environment, prepare_stubs

ROOT = Path(__file__).resolve().parents[2]


def run_case(name, options=None, title=None, rank=0, size=1, timeout=1800, log=None,
             program=("tools.ascend_dry_run.cases",)):
    """Report of a case of cases.py.

    Args:
        options: keyword arguments of the case. title: its name in the report. rank, size: of the world it is compiled
            for. timeout: in seconds. log: file to keep MindSpore's log in (many megabytes). program: module that runs
            the case, and arguments before the case's own.

    Raises:
        OSError: see stubs.prepare_stubs.
    """
    root, title = prepare_stubs(), title or name
    command = [sys.executable, "-m", *program, name, json.dumps(options or {})]
    with tempfile.TemporaryDirectory() as folder:
        logged = Path(log) if log else Path(folder) / "log.txt"
        # Its working folder, because MindSpore leaves kernel_meta and rank folders where it runs.
        env = environment(root, rank, size)
        env["PYTHONPATH"] = f"{ROOT}:{env['PYTHONPATH']}"
        with open(logged, "w") as errors:
            try:
                done = subprocess.run(command, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True,
                                      timeout=timeout, errors="replace", check=False)
            except subprocess.TimeoutExpired:
                return Report(title, error=f"not compiled within {timeout} s")
        # A process often aborts while it closes, after all results: its exit code tells nothing.
        return read_report(title, done.stdout, logged.read_text(errors="replace"))
