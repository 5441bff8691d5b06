"""A training run that is sent a signal at a chosen moment: python -m tests.support.signalled MOMENT RANK COMMAND ...

MOMENT is step, save, evaluation or rollout; the process of rank RANK gets SIGTERM there, once, in the third of them
(the second evaluation). COMMAND and what follows go to ospnext_ms.
"""

import os
import signal
import sys
import threading
import time

from ospnext_ms import __main__ as command_line


def interrupt(function, at):
    """The function, in whose call number `at` (from 1) this process gets the signal before it goes on."""
    calls, lock = [], threading.Lock()

    def wrapped(*arguments, **options):
        with lock:
            calls.append(None)
            is_it = len(calls) == at
        if is_it:
            os.kill(os.getpid(), signal.SIGTERM)
            # The thread that waits for signals notes it meanwhile.
            time.sleep(1.0)
        return function(*arguments, **options)

    return wrapped


def prepare(moment):
    """Puts the signal where it is wanted."""
    from ospnext_ms.post_training.evaluation import Evaluation
    from ospnext_ms.post_training.rollout import Rollout
    from ospnext_ms.storage import checkpoint_store
    from ospnext_ms.training.fixed_set import FixedSet
    from ospnext_ms.training.step import TrainStep

    if moment == "step":
        TrainStep.gradients = interrupt(TrainStep.gradients, 3)
    elif moment == "save":
        checkpoint_store.write_file = interrupt(checkpoint_store.write_file, 2)
    elif moment == "evaluation":
        FixedSet.mean_loss = interrupt(FixedSet.mean_loss, 3)
        Evaluation.__call__ = interrupt(Evaluation.__call__, 2)
    elif moment == "rollout":
        Rollout.__call__ = interrupt(Rollout.__call__, 2)


def main(moment, rank, *arguments):
    """Runs the command."""
    command = arguments[0]
    run = command_line.importlib.import_module(command_line.COMMANDS[command][0])
    name = "train" if command == "train" else "post_train"
    plain = getattr(run, name)

    def prepared(*given):
        # By now signals are held, and MindSpore may start its threads.
        if os.environ.get("RANK_ID", "0") == rank:
            prepare(moment)
        return plain(*given)

    setattr(run, name, prepared)
    return command_line.main(list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
