"""`python -m ospnext_ms plan`: what a run needs, from its YAML file alone, before any device is touched."""

import json
from argparse import ArgumentParser, Namespace

from ospnext_ms.commands.options import add_config_options
from ospnext_ms.planning.devices import DEVICES
from ospnext_ms.planning.run import plan


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `plan`."""
    add_config_options(parser, "yaml_configs/{generate,train,post_train}", "recompute_config.recompute=false")
    parser.add_argument("--devices", type=int, metavar="N", help="number of devices, where the file leaves it open")
    parser.add_argument("--video", type=int, nargs=3, metavar=("HEIGHT", "WIDTH", "FRAMES"),
                        help="size of the videos, instead of that of the file or its data")
    parser.add_argument("--device", metavar="NAME", help=f"predict seconds on one of {', '.join(DEVICES)}")
    parser.add_argument("--device-set", action="append", default=[], metavar="KEY=NUMBER", dest="device_overrides",
                        help="another rate or share of that device, see ospnext_ms/planning/devices.py")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON (bytes, operations)")


def run(arguments: Namespace) -> int:
    """Runs `plan` with parsed options and returns the exit code."""
    figures, text = plan(arguments.config, arguments.overrides, devices=arguments.devices,
                         video=tuple(arguments.video) if arguments.video else None, device=arguments.device,
                         device_overrides=arguments.device_overrides)
    print(json.dumps(figures, indent=1) if arguments.json else text)
    return 0
