"""A post-training run in a process of its own: python -m tests.post_training.run_worker CONFIG [KILLED_AFTER].

Prints a digest of everything a run learns at its end. With KILLED_AFTER the process kills itself, as a power cut would,
when it comes to the iteration after that one.
"""

import hashlib
import os
import signal
import sys

from ospnext_ms.config.post_train import PostTrainConfig
from ospnext_ms.config.reader import load_config
from ospnext_ms.runtime import start


def digest(trainer):
    """SHA-256 of adapters, averages and moments."""
    hasher = hashlib.sha256()
    for group, parameters in trainer.learner.state.groups.items():
        for name, parameter in parameters.items():
            hasher.update(f"{group}/{name}".encode() + parameter.asnumpy().tobytes())
    return hasher.hexdigest()


def main(path, killed_after=None):
    """Runs the configuration."""
    from ospnext_ms.parallel.mesh import start_processes
    from ospnext_ms.post_training.trainer import PolicyTrainer

    config = load_config(PostTrainConfig, path)
    runtime = start(config.context)
    trainer = PolicyTrainer(config, runtime, start_processes(config.parallel_config))
    roll_out = trainer._roll_out

    def watched(schedule, iteration, *arguments):
        if killed_after is not None and iteration == int(killed_after):
            trainer.store.wait()
            os.kill(os.getpid(), signal.SIGKILL)
        return roll_out(schedule, iteration, *arguments)

    trainer._roll_out = watched
    trainer.run()
    print("digest", digest(trainer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
