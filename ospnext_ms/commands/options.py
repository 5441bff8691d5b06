"""Options that several commands share."""

from argparse import ArgumentParser


def add_config_options(parser: ArgumentParser, files: str, example: str) -> None:
    """Adds --config and --set, for load_config. `files`: which YAML files; `example`: KEY=VALUE."""
    parser.add_argument("--config", required=True, metavar="F", help=f"YAML file, see {files}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                        help=f"override one value of the file, for example {example}; may be repeated")
