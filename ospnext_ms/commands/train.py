"""`python -m ospnext_ms train`: fine-tunes a transformer on prepared videos; the same command resumes it."""

from argparse import ArgumentParser, Namespace

from ospnext_ms.commands.options import add_config_options
from ospnext_ms.config.reader import load_config
from ospnext_ms.config.train import TrainConfig
from ospnext_ms.parallel.interruption import Interruption
from ospnext_ms.training.run import train


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `train`."""
    add_config_options(parser, "yaml_configs/train", "runner_config.steps=20")


def run(arguments: Namespace) -> int:
    """Runs `train` with parsed options and returns the exit code."""
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    with Interruption() as interruption:
        for path in train(config, interruption):
            print(path)
    return 0
