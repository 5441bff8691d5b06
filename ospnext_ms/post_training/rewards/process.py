"""A reward in a process of its own: slow, hanging or crashing, it cannot take the trainer down with it.

The process leads a session of its own, so that all it has started ends with it: a forked child holds the socket open
and would let the trainer wait for the answer of a dead process.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

WORKER = "ospnext_ms.post_training.rewards.worker"
# How often the process is looked at, and how long it may take to leave by itself.
_POLL_SECONDS = 0.1
_LEAVE_SECONDS = 1.0


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
        self._process = self._connection = self._socket = None
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
        if self._process is not None and not _has_ended(self._process):
            return
        self._stop()
        ours, theirs = socket.socketpair()
        command = [self.python, "-m", WORKER, str(theirs.fileno()), self.callable, self.arguments]
        try:
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=_environment(),
                                             stdin=subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            ours.close()
            theirs.close()
            raise RewardError(f"{self.python} cannot be started: {error}") from error
        theirs.close()
        self._socket, self._connection = ours, Connection(os.dup(ours.fileno()))
        kind, answer = self._exchange(None, self.start_timeout)
        if kind == "failed":
            self._stop()
            raise RewardError(f"it could not be made\n{answer}")

    def _exchange(self, message, timeout):
        """Sends a message, if any, and receives the answer; past the time-out, or dead, the process is given up."""
        answered, expired = threading.Event(), threading.Event()
        # Another thread, because sending blocks too where nobody receives.
        watch = threading.Thread(target=self._watch, args=(timeout, answered, expired), daemon=True)
        watch.start()
        try:
            if message is not None:
                self._connection.send(message)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            answered.set()
            watch.join()
            code = self._stop()
            if expired.is_set():
                raise RewardError(f"no answer within {timeout:g} s, its process was killed") from error
            raise RewardError(f"its process ended with {_describe_exit(code)} (see its messages above)") from error
        finally:
            answered.set()
            watch.join()
        if not _is_answer(answer):
            self._stop()
            raise RewardError(f"its process sent {type(answer).__name__}, which is no answer")
        return answer

    def _watch(self, timeout, answered, expired):
        """Ends the wait for an answer that cannot come: the process is dead, or its time is over."""
        deadline = time.monotonic() + timeout
        while not answered.wait(_POLL_SECONDS):
            if time.monotonic() > deadline:
                expired.set()
            if expired.is_set() or _has_ended(self._process):
                _kill_session(self._process)
                # What was sent before can still be received. Children that left the session may hold the other end.
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
                return

    def _stop(self):
        """Ends the process and all it started; returns its exit code, None where there was none."""
        process, self._process = self._process, None
        if process is None:
            return None
        self._connection.close()
        self._socket.close()
        deadline = time.monotonic() + _LEAVE_SECONDS
        while not _has_ended(process) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS / 10)
        _kill_session(process)
        return process.wait()


def _has_ended(process):
    """Whether a process is dead; it is not reaped, so that its number stays its own."""
    if process.returncode is not None:
        return True
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, flags) is not None


def _kill_session(process):
    # Before the process is reaped: until then no other group can have its number.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _is_answer(value):
    return isinstance(value, tuple) and len(value) == 2 and value[0] in ("ready", "failed", "scores", "error")


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
