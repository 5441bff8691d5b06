"""SIGTERM and SIGINT (pre-emption, Ctrl-C): what is being done is finished before the process ends.

The signals are blocked and waited for by a thread of their own. A handler would not do: Python calls it between two
lines of the main thread only, and MindSpore puts one of its own in its place while a graph runs.
"""

import os
import signal
import sys
import threading
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL_SECONDS = 0.5
# `timeout` and batch systems signal a process and its group, so that one wish comes twice.
_ECHO_SECONDS = 0.3


class Interruption:
    """Context in which the first signal is noted, and a second, not in the same moment, ends the process at once.

    To be entered by the main thread with the signals blocked since before a library started threads (see __main__.py):
    they inherit what is blocked.

    Args:
        promise: what is done after the first signal, as it is told.

    Attributes:
        asked: number of the signal that asks for an end, 0 for none.
    """

    def __init__(self, promise="the step is finished and saved"):
        self.asked = 0
        self._asked_at = 0.0
        self._promise = promise
        self._is_obeyed = False
        self._left = threading.Event()

    def __enter__(self):
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        # For a thread that does not block them after all: the main thread then hears of it when it can.
        self._handlers = {number: signal.signal(number, self._caught) for number in SIGNALS}
        self._thread = threading.Thread(target=self._wait, daemon=True, name="signals")
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._left.set()
        self._thread.join()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def begin(self):
        """From now on steps are finished; before, there is nothing to finish and a signal ends the process."""
        self._is_obeyed = True

    def _wait(self):
        while not self._left.is_set():
            caught = signal.sigtimedwait(SIGNALS, _POLL_SECONDS)
            if caught is not None:
                self._caught(caught.si_signo)

    def _caught(self, number, frame=None):
        name = signal.Signals(number).name
        if number == self.asked and time.monotonic() < self._asked_at + _ECHO_SECONDS:
            return
        if self.asked or not self._is_obeyed:
            print(f"{name}: ended at once" if self.asked else f"{name}: ended before the first step", file=sys.stderr,
                  flush=True)
            sys.stdout.flush()
            os._exit(exit_status(number))
        self.asked, self._asked_at = int(number), time.monotonic()
        print(f"{name}: {self._promise}, then the run ends; a second signal ends it at once", file=sys.stderr,
              flush=True)


def exit_status(number):
    """Of a process that ended because of a signal."""
    return 128 + number
