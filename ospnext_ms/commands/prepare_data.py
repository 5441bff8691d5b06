"""`python -m ospnext_ms prepare-data`: from a manifest of videos to a cache that training reads."""

from argparse import ArgumentParser, Namespace

from ospnext_ms.commands.options import add_config_options, add_part_option
from ospnext_ms.config.prepare_data import PrepareDataConfig
from ospnext_ms.config.reader import load_config
from ospnext_ms.preparation.run import prepare_data


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `prepare-data`."""
    add_config_options(parser, "yaml_configs/prepare_data", "workers=8")
    add_part_option(parser, "where several processes, each with a device of its own, share a run; the one that ends "
                            "last writes the index")


def run(arguments: Namespace) -> int:
    """Runs `prepare-data` with parsed options and returns the exit code."""
    config = load_config(PrepareDataConfig, arguments.config, arguments.overrides)
    for line in prepare_data(config, arguments.part):
        print(line)
    return 0
