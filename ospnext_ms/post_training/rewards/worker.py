"""The process of one reward: python -m ospnext_ms.post_training.rewards.worker FD CALLABLE ARGUMENTS.

It speaks pickled tuples over the socket FD: sends ("ready", None) once the scorer is made, then answers every
(frames, prompts) with ("scores", (scores, parts)), or with ("error", traceback) where the scorer raised. It needs
NumPy and the reward's own packages only, so that it can run in another environment than the trainer.
"""

import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection


def resolve(name):
    """The object that "package.module:name" names; ValueError where there is none."""
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise ValueError(f"callable is {name!r}; expected package.module:name")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"callable {name}: {error}") from error


def _plain(result):
    """(scores, parts) as plain numbers; TypeError where a scorer returned something else."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
        raise TypeError(f"it returned {_describe(result)}; a scorer returns (scores, parts): one number a video, and a "
                        "dict of what they are made of, {} for nothing")
    scores, parts = result
    return [float(score) for score in scores], {str(k): [float(v) for v in values] for k, values in parts.items()}


def _describe(result):
    size = f" of {len(result)}" if hasattr(result, "__len__") else ""
    return f"a {type(result).__name__}{size}"


def _leave_with_the_trainer(trainer):
    """Ends this process and what it started when the trainer is gone, however it went: nobody else will."""
    while os.getppid() == trainer:
        time.sleep(1)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main(arguments):
    """Serves until the trainer closes the socket."""
    descriptor, name, keywords = arguments
    connection = Connection(int(descriptor))
    os.set_inheritable(int(descriptor), False)
    threading.Thread(target=_leave_with_the_trainer, args=(os.getppid(),), daemon=True).start()
    # What a reward prints belongs on the trainer's error output, not into what the trainer prints itself.
    os.dup2(2, 1)
    # The trainer decides when this process ends; what it blocks for itself is inherited.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        scorer = resolve(name)(**json.loads(keywords))
    except Exception:
        connection.send(("failed", traceback.format_exc(limit=-3)))
        return 1
    connection.send(("ready", None))
    while True:
        try:
            frames, prompts = connection.recv()
        except EOFError:
            return 0
        try:
            answer = "scores", _plain(scorer(frames, prompts))
        except Exception:
            answer = "error", traceback.format_exc(limit=-3)
        connection.send(answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
