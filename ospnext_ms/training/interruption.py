"""SIGTERM and SIGINT (pre-emption, Ctrl-C): the step is finished and saved before the process ends.

The signals are blocked and waited for by a thread of their own. A handler would not do: Python calls it between two
lines of the main thread only, and MindSpore puts one of its own in its place while a graph runs.
"""

import os
import signal
import sys
import threading

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL_SECONDS = 0.5


class Interruption:
    """Context in which the first signal is noted, and the second ends the process at once.

    To be entered by the main thread before a framework starts threads: they inherit what is blocked.

    Attributes:
        asked: number of the signal that asks for an end, 0 for none.
    """

    def __init__(self):
        self.asked = 0
        self._is_obeyed = False
        self._left = threading.Event()

    def __enter__(self):
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        # What a second signal does, which is not waited for any more.
        self._handlers = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
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
        """From now on a step is finished and saved; before, there is nothing to save and a signal ends the process."""
        self._is_obeyed = True

    def _wait(self):
        caught = None
        while caught is None and not self._left.is_set():
            caught = signal.sigtimedwait(SIGNALS, _POLL_SECONDS)
        if caught is None:
            return
        name = signal.Signals(caught.si_signo).name
        if not self._is_obeyed:
            print(f"{name}: ended before the first step", file=sys.stderr, flush=True)
            os._exit(exit_status(caught.si_signo))
        print(f"{name}: the step is finished and saved, then the run ends; a second signal ends it at once",
              file=sys.stderr, flush=True)
        self.asked = int(caught.si_signo)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._left.wait()


def exit_status(number):
    """Of a process that ended because of a signal."""
    return 128 + number
