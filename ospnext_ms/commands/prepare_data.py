"""`python -m ospnext_ms prepare-data`: from a manifest of videos to a cache that training reads."""

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace

from ospnext_ms.commands.options import add_config_options
from ospnext_ms.config.prepare_data import PrepareDataConfig
from ospnext_ms.config.reader import load_config
from ospnext_ms.preparation.run import prepare_data


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `prepare-data`."""
    add_config_options(parser, "yaml_configs/prepare_data", "workers=8")
    parser.add_argument("--part", default=(0, 1), type=_part, metavar="I/N",
                        help="do part I of N (from 1), where several processes, each with a device of its own, share "
                             "a run; the one that ends last writes the index")


def run(arguments: Namespace) -> int:
    """Runs `prepare-data` with parsed options and returns the exit code."""
    config = load_config(PrepareDataConfig, arguments.config, arguments.overrides)
    for line in prepare_data(config, arguments.part):
        print(line)
    return 0


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ArgumentTypeError(f"{text!r} is not I/N with 1 <= I <= N, for example 1/8")
    return int(match[1]) - 1, int(match[2])
