"""`python -m ospnext_ms prepare-data`: from a manifest of videos to a cache that training reads."""

import os
import re
from pathlib import Path

from ospnext_ms.config.prepare_data import PrepareDataConfig
from ospnext_ms.config.reader import add_config_options, load_config
from ospnext_ms.data import cache
from ospnext_ms.preparation.prepare import prepare
from ospnext_ms.preparation.report import summary


def add_arguments(parser):
    """Options of `prepare-data`."""
    add_config_options(parser, "yaml_configs/prepare_data", "workers=8")
    parser.add_argument("--part", default="1/1", metavar="I/N",
                        help="do part I of N (from 1), where several processes, each with a device of its own, share "
                             "a run; the one that ends last writes the index")


def run(arguments):
    """Runs `prepare-data` with parsed options and returns the exit code."""
    if int(os.environ.get("MS_WORKER_NUM", "1")) > 1:
        raise ValueError("prepare-data does not run under msrun; start N processes with --part 1/N to N/N instead")
    config = load_config(PrepareDataConfig, arguments.config, arguments.overrides)
    report = prepare(config, _parse_part(arguments.part))
    if report is None:
        print(f"part {arguments.part} is done; other parts are not yet")
        return 0
    print(summary(report))
    print(Path(config.output_dir) / cache.INDEX)
    return 0


def _parse_part(text):
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"--part is {text!r}; expected I/N with 1 <= I <= N, for example 1/8")
    return int(match[1]) - 1, int(match[2])
