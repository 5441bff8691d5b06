"""`python -m ospnext_ms generate`: videos from prompts; the same command goes on where it was stopped."""

from argparse import ArgumentParser, Namespace

from ospnext_ms.commands.options import add_config_options, add_part_option
from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import load_config
from ospnext_ms.generation.run import generate
from ospnext_ms.parallel.interruption import Interruption


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `generate`."""
    add_config_options(parser, "yaml_configs/generate", "sampling.steps=20")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="what the video shows")
    prompt.add_argument("--prompt-file", metavar="F", help="file with one prompt per line, or JSON lines")
    parser.add_argument("--output", metavar="DIR", help="folder for the results, instead of output_dir")
    parser.add_argument("--seed", type=int, metavar="N", help="instead of sampling.seed")
    share = parser.add_mutually_exclusive_group()
    add_part_option(share, "where several processes or hosts, each with devices of its own, share a list of prompts")
    share.add_argument("--index", type=int, metavar="N", help="make the video of this index again, and no other")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace videos in the folder that were made with other settings")


def run(arguments: Namespace) -> int:
    """Runs `generate` with parsed options and returns the exit code."""
    config = load_config(GenerateConfig, arguments.config, arguments.overrides, _option_values(arguments))
    with Interruption("the step, or the video that is being written, is finished") as interruption:
        for path in generate(config, index=arguments.index, part=arguments.part, overwrite=arguments.overwrite,
                             interruption=interruption):
            print(path)
    return 0


def _option_values(arguments: Namespace) -> dict[str, object]:
    values = {}
    if arguments.prompt is not None:
        values |= {"prompts.prompt": arguments.prompt, "prompts.prompt_file": None}
    if arguments.prompt_file is not None:
        values |= {"prompts.prompt": None, "prompts.prompt_file": arguments.prompt_file}
    if arguments.output is not None:
        values["output_dir"] = arguments.output
    if arguments.seed is not None:
        values["sampling.seed"] = arguments.seed
    return values
