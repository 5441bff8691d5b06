"""`python -m ospnext_ms train`: fine-tunes a transformer on prepared videos; the same command resumes it."""

from ospnext_ms.parallel.degrees import check_parallel, world_size
from ospnext_ms.training.config import TrainConfig
from ospnext_ms.yaml_reader import add_config_options, load_config


def add_arguments(parser):
    """Options of `train`."""
    add_config_options(parser, "yaml_configs/train", "runner_config.steps=20")


def run(arguments):
    """Runs `train` with parsed options and returns the exit code."""
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    for path in train(config):
        print(path)
    return 0


def train(config):
    """Trains what a TrainConfig says; returns the paths to look at, none on processes that do not report.

    Raises:
        FileNotFoundError, ValueError: something the configuration names is not there or does not fit.
        FloatingPointError: loss or gradient stopped being finite.
    """
    check_parallel(config.parallel_config, config.model.dit, world_size())

    from ospnext_ms.pipelines.runtime import start_run
    from ospnext_ms.training.loop import Trainer

    return Trainer(config, *start_run(config)).run()
