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
import traceback
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


def main(arguments):
    """Serves until the trainer closes the socket."""
    descriptor, name, keywords = arguments
    connection = Connection(int(descriptor))
    # What a reward prints belongs on the trainer's error output, not into what the trainer prints itself.
    os.dup2(2, 1)
    # Ctrl-C reaches the whole process group; the trainer decides when this process ends.
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
            scores, parts = scorer(frames, prompts)
            answer = "scores", ([float(s) for s in scores], {k: [float(v) for v in vs] for k, vs in parts.items()})
        except Exception:
            answer = "error", traceback.format_exc(limit=-3)
        connection.send(answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
