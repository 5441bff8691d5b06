"""A reward in a process of its own: slow, hanging or crashing, it cannot take the trainer down with it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

WORKER = "ospnext_ms.post_training.rewards.worker"


class RewardError(ChildProcessError):
    """A reward gave no scores; the message names the reward and says why."""


class RewardProcess:
    """One reward's process, started when it is first asked and again after it failed.

    Args:
        name: for messages. callable: "package.module:name", see rewards/__init__.py. arguments: JSON values for it.
        python: interpreter of its environment, None for this one.
        timeout: seconds for one batch. start_timeout: seconds until it is ready. retries: of a failed batch.
    """

    def __init__(self, name, callable, arguments, python=None, timeout=600.0, start_timeout=600.0, retries=1):
        self.name = name
        self.callable = callable
        self.arguments = json.dumps(arguments)
        self.python = python or sys.executable
        self.timeout, self.start_timeout, self.retries = timeout, start_timeout, retries
        self._process = self._connection = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"reward-{name}")

    def submit(self, frames, prompts):
        """Asks for the scores of frames uint8 [n, F, H, W, 3] and returns a future of (scores [n], {part: [n]}).

        Its result() raises RewardError where every attempt failed. Scores may be NaN.
        """
        return self._thread.submit(self._ask, frames, list(prompts))

    def start(self):
        """Starts the process and waits until it is ready; RewardError where it cannot be."""
        self._thread.submit(self._start).result()

    def close(self):
        """Ends the process."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._stop()

    def _ask(self, frames, prompts):
        problems = []
        for _ in range(self.retries + 1):
            try:
                return self._attempt(frames, prompts)
            except RewardError as error:
                problems.append(str(error))
        times = f" in {len(problems)} attempts" if len(problems) > 1 else ""
        raise RewardError(f"reward {self.name} ({self.callable}) failed{times}: {problems[-1]}")

    def _attempt(self, frames, prompts):
        self._start()
        kind, answer = self._exchange((frames, prompts), self.timeout)
        if kind == "error":
            raise RewardError(f"it raised\n{answer}")
        scores, parts = answer
        for what, values in {"scores": scores, **parts}.items():
            if len(values) != len(prompts):
                raise RewardError(f"it gave {len(values)} {what} for {len(prompts)} videos")
        return np.array(scores), {part: np.array(values) for part, values in parts.items()}

    def _start(self):
        if self._process is not None and self._process.poll() is None:
            return
        ours, theirs = socket.socketpair()
        command = [self.python, "-m", WORKER, str(theirs.fileno()), self.callable, self.arguments]
        try:
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=_environment(),
                                             stdin=subprocess.DEVNULL)
        except OSError as error:
            raise RewardError(f"{self.python} cannot be started: {error}") from error
        theirs.close()
        self._connection = Connection(ours.detach())
        kind, answer = self._exchange(None, self.start_timeout)
        if kind == "failed":
            self._stop()
            raise RewardError(f"it could not be made\n{answer}")

    def _exchange(self, message, timeout):
        """Sends a message, if any, and receives the answer; past the time-out the process is killed."""
        expired = threading.Event()

        def kill():
            expired.set()
            self._process.kill()

        # A timer, because sending blocks too where nobody receives.
        timer = threading.Timer(timeout, kill)
        timer.start()
        try:
            if message is not None:
                self._connection.send(message)
            return self._connection.recv()
        except (EOFError, OSError) as error:
            code = self._stop()
            if expired.is_set():
                raise RewardError(f"no answer within {timeout:g} s, its process was killed") from error
            raise RewardError(f"its process ended with {_describe_exit(code)} (see its messages above)") from error
        finally:
            timer.cancel()

    def _stop(self):
        """Ends the process and returns its exit code; None where there was none."""
        process, self._process = self._process, None
        if process is None:
            return None
        self._connection.close()
        try:
            return process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _environment():
    """This one's, with this package and the current folder importable whatever the interpreter."""
    root = str(Path(__file__).resolve().parents[3])
    paths = [root, os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    # One thread, unless told otherwise: the cores are the trainer's.
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _describe_exit(code):
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
