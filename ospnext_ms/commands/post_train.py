"""`python -m ospnext_ms post-train`: adapters trained on rewards; the same command resumes it."""

from argparse import ArgumentParser, Namespace

from ospnext_ms.commands.options import add_config_options
from ospnext_ms.config.post_train import PostTrainConfig
from ospnext_ms.config.reader import load_config
from ospnext_ms.parallel.interruption import Interruption
from ospnext_ms.post_training.run import post_train


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `post-train`."""
    add_config_options(parser, "yaml_configs/post_train", "policy.clip=0.001")


def run(arguments: Namespace) -> int:
    """Runs `post-train` with parsed options and returns the exit code."""
    config = load_config(PostTrainConfig, arguments.config, arguments.overrides)
    with Interruption() as interruption:
        for path in post_train(config, interruption):
            print(path)
    return 0
