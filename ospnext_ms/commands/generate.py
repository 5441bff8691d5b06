"""`python -m ospnext_ms generate`: videos from prompts; the same command goes on where it was stopped."""

import re
import secrets
from argparse import ArgumentParser, ArgumentTypeError, Namespace

from ospnext_ms.commands.options import add_config_options, add_part_option
from ospnext_ms.config.checks import MAX_SEED
from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import load_config
from ospnext_ms.generation.run import generate
from ospnext_ms.parallel.degrees import world_size
from ospnext_ms.parallel.interruption import Interruption

# Options that stand for one key each.
_KEYS = {"output": "output_dir", "seed": "sampling.seed", "steps": "sampling.steps", "guidance": "sampling.guidance",
         "frames": "video.frames"}


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `generate`."""
    add_config_options(parser, "yaml_configs/generate", "sampling.steps=20")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="what the video shows")
    prompt.add_argument("--prompt-file", metavar="F", help="file with one prompt per line, or JSON lines")
    parser.add_argument("--output", metavar="DIR", help="folder for the results, instead of output_dir")
    parser.add_argument("--seed", type=int, metavar="N", help="instead of sampling.seed; -1 draws one, and says which")
    parser.add_argument("--steps", type=int, metavar="N", help="instead of sampling.steps")
    parser.add_argument("--guidance", type=float, metavar="G", help="instead of sampling.guidance; 1 is off")
    parser.add_argument("--size", type=_size, metavar="WxH", help="width and height in pixels, for example 1280x720")
    parser.add_argument("--frames", type=int, metavar="N", help="instead of video.frames")
    share = parser.add_mutually_exclusive_group()
    add_part_option(share, "where several processes or hosts, each with devices of its own, share a list of prompts")
    share.add_argument("--index", type=int, metavar="N", help="make the video of this index again, and no other")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace videos in the folder that were made with other settings")
    parser.add_argument("--profile", action="store_true",
                        help="write a trace of two sampling steps, and say what the first video's seconds went into")


def run(arguments: Namespace) -> int:
    """Runs `generate` with parsed options and returns the exit code."""
    config = load_config(GenerateConfig, arguments.config, arguments.overrides, _option_values(arguments))
    with Interruption("the step, or the video that is being written, is finished") as interruption:
        for path in generate(config, index=arguments.index, part=arguments.part, overwrite=arguments.overwrite,
                             interruption=interruption, profile=arguments.profile):
            print(path)
    return 0


def _option_values(arguments: Namespace) -> dict[str, object]:
    values = {key: getattr(arguments, option) for option, key in _KEYS.items()
              if getattr(arguments, option) is not None}
    if arguments.prompt is not None:
        values |= {"prompts.prompt": arguments.prompt, "prompts.prompt_file": None}
    if arguments.prompt_file is not None:
        values |= {"prompts.prompt": None, "prompts.prompt_file": arguments.prompt_file}
    if arguments.size is not None:
        values["video.width"], values["video.height"] = arguments.size
    if arguments.seed == -1:
        values["sampling.seed"] = _drawn_seed()
    return values


def _drawn_seed() -> int:
    if world_size() > 1:
        raise ValueError("--seed -1 would draw another seed in each process; give them all one number")
    seed = secrets.randbelow(MAX_SEED + 1)
    print(f"seed {seed}", flush=True)
    return seed


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)[x*](\d+)", text)
    if not match:
        raise ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT in pixels, for example 1280x720")
    return int(match[1]), int(match[2])
