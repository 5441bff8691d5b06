"""`python -m ospnext_ms plan`: what a run needs, from its YAML file alone, before any device is touched."""

import json

from ospnext_ms.config.reader import add_config_options
from ospnext_ms.planning.plan import describe, make_plan
from ospnext_ms.planning.workload import read_workload


def add_arguments(parser):
    """Options of `plan`."""
    add_config_options(parser, "yaml_configs/{generate,train,post_train}", "recompute_config.recompute=false")
    parser.add_argument("--devices", type=int, metavar="N", help="number of devices, where the file leaves it open")
    parser.add_argument("--video", type=int, nargs=3, metavar=("HEIGHT", "WIDTH", "FRAMES"),
                        help="size of the videos, instead of that of the file or its data")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON (bytes, operations)")


def run(arguments):
    """Runs `plan` with parsed options and returns the exit code."""
    video = tuple(arguments.video) if arguments.video else None
    plan = make_plan(read_workload(arguments.config, arguments.overrides, arguments.devices, video))
    print(json.dumps(plan, indent=1) if arguments.json else describe(plan))
    return 0
