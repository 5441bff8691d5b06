"""`python -m ospnext_ms train`: fine-tunes a transformer on prepared videos; the same command resumes it."""

from ospnext_ms.parallel.degrees import check_parallel, world_size
from ospnext_ms.reporting.trackers import check_installed


def train(config, interruption=None):
    """Trains what a TrainConfig says; returns the paths to look at, none on processes that do not report.

    `interruption`: Interruption that notes signals, None where they are somebody else's.

    Raises:
        FileNotFoundError, ValueError: something the configuration names is not there or does not fit.
        FloatingPointError: loss or gradient stopped being finite. SystemExit: a signal asked for an end.
    """
    check_parallel(config.parallel_config, config.model.dit, world_size())
    check_installed(config.callbacks.trackers)

    from ospnext_ms.runtime import start_run
    from ospnext_ms.training.loop import Trainer

    return Trainer(config, *start_run(config), interruption).run()
