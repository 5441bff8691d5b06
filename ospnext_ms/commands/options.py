"""Options that several commands share, and the parser that reads them."""

import re
from argparse import ArgumentParser, ArgumentTypeError, _MutuallyExclusiveGroup
from typing import NoReturn


class OneLineParser(ArgumentParser):
    """A parser whose errors are one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        """Exits with 2."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def add_config_options(parser: ArgumentParser, files: str, example: str) -> None:
    """Adds --config and --set, for load_config. `files`: which YAML files; `example`: KEY=VALUE."""
    parser.add_argument("--config", required=True, metavar="F", help=f"YAML file, see {files}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                        help=f"override one value of the file, for example {example}; may be repeated")


def add_part_option(parser: ArgumentParser | _MutuallyExclusiveGroup, why: str) -> None:
    """Adds --part I/N, read as (i, n) with i from 0."""
    parser.add_argument("--part", default=(0, 1), type=_part, metavar="I/N", help=f"do part I of N (from 1), {why}")


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ArgumentTypeError(f"{text!r} is not I/N with 1 <= I <= N, for example 1/8")
    return int(match[1]) - 1, int(match[2])
