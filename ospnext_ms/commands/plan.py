"""`python -m ospnext_ms plan`: what a run needs, from its YAML file alone, before any device is touched."""

import json

from ospnext_ms.config.reader import add_config_options
from ospnext_ms.planning.devices import DEVICES, device_of
from ospnext_ms.planning.plan import describe, make_plan
from ospnext_ms.planning.seconds import describe_seconds, forward_seconds, growth, step_seconds
from ospnext_ms.planning.workload import read_workload


def add_arguments(parser):
    """Options of `plan`."""
    add_config_options(parser, "yaml_configs/{generate,train,post_train}", "recompute_config.recompute=false")
    parser.add_argument("--devices", type=int, metavar="N", help="number of devices, where the file leaves it open")
    parser.add_argument("--video", type=int, nargs=3, metavar=("HEIGHT", "WIDTH", "FRAMES"),
                        help="size of the videos, instead of that of the file or its data")
    parser.add_argument("--device", metavar="NAME", help=f"predict seconds on one of {', '.join(DEVICES)}")
    parser.add_argument("--device-set", action="append", default=[], metavar="KEY=NUMBER", dest="device_overrides",
                        help="another rate or share of that device, see ospnext_ms/planning/devices.py")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON (bytes, operations)")


def run(arguments):
    """Runs `plan` with parsed options and returns the exit code."""
    video = tuple(arguments.video) if arguments.video else None
    if arguments.device_overrides and not arguments.device:
        raise ValueError("--device-set changes a device's rates; say which with --device")
    workload = read_workload(arguments.config, arguments.overrides, arguments.devices, video)
    plan, text = make_plan(workload), ""
    if arguments.device:
        device = device_of(arguments.device, arguments.device_overrides)
        plan["seconds"] = {"device": arguments.device, "forward": forward_seconds(workload, device),
                           "step": step_seconds(workload, device), "growth": growth(workload, device)}
        text = "\n\n" + describe_seconds(workload, arguments.device, device)
    print(json.dumps(plan, indent=1) if arguments.json else describe(plan) + text)
    return 0
