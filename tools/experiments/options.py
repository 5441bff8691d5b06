"""Options that the commands share which compare models by the videos they draw."""

import argparse
from pathlib import Path

from tools.tiny_family.recipe import FOLDER


def evaluation_parser(description: str, each: str) -> argparse.ArgumentParser:
    """Parser of a command that draws --samples videos of each (mode or model) and writes a report."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help=f"videos of each {each}")
    parser.add_argument("--weights", type=Path, default=FOLDER / "weights", help="with VAE, text encoder, tokenizer")
    parser.add_argument("--config", type=Path, default=FOLDER / "train.yaml")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--output", type=Path, required=True, help="folder for the JSON report and contact sheets")
    return parser


def parse_evaluation(parser: argparse.ArgumentParser, argv=None) -> argparse.Namespace:
    """Parsed options; ends the program where an interval cannot be made of so few samples."""
    arguments = parser.parse_args(argv)
    if arguments.samples < 2:
        parser.error(f"--samples is {arguments.samples}; at least 2 are needed")
    return arguments
