"""`python -m ospnext_ms calibrate-cache`: which steps may reuse an earlier one, measured."""

from argparse import ArgumentParser, Namespace

from ospnext_ms.commands.options import add_config_options
from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import load_config
from ospnext_ms.generation.calibrate import calibrate


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `calibrate-cache`."""
    add_config_options(parser, "yaml_configs/generate", "sampling.steps=20")
    parser.add_argument("--prompt-file", required=True, metavar="F", help="prompts to measure with; a few are enough")
    parser.add_argument("--output", required=True, metavar="FILE", help="JSON file, for sampling.cache.calibration")


def run(arguments: Namespace) -> int:
    """Runs `calibrate-cache` with parsed options and returns the exit code."""
    values = {"prompts.prompt": None, "prompts.prompt_file": arguments.prompt_file, "sampling.cache": None}
    print(calibrate(load_config(GenerateConfig, arguments.config, arguments.overrides, values), arguments.output))
    return 0
