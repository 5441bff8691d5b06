"""`python -m ospnext_ms serve`: a web page and an HTTP API, with the networks loaded once."""

from argparse import ArgumentParser, Namespace

from ospnext_ms.commands.options import add_config_options
from ospnext_ms.config.reader import load_config
from ospnext_ms.config.serve import ServeConfig
from ospnext_ms.parallel.interruption import Interruption
from ospnext_ms.serving.run import serve

_KEYS = {"output": "output_dir", "address": "serve.address", "port": "serve.port", "token": "serve.token"}


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `serve`."""
    add_config_options(parser, "yaml_configs/generate", "serve.queue=4")
    parser.add_argument("--output", metavar="DIR", help="folder for jobs and videos, instead of output_dir")
    parser.add_argument("--address", metavar="A", help="where to listen, 127.0.0.1 by default; others need a token")
    parser.add_argument("--port", type=int, metavar="N", help="8000 by default; 0 takes a free one")
    parser.add_argument("--token", metavar="T", help="what every request has to bring")


def run(arguments: Namespace) -> int:
    """Runs `serve` with parsed options and returns the exit code."""
    values = {key: getattr(arguments, option) for option, key in _KEYS.items()
              if getattr(arguments, option) is not None}
    config = load_config(ServeConfig, arguments.config, arguments.overrides, values)
    with Interruption("the step is finished, the video is queued for the next start") as interruption:
        serve(config, interruption)
    return 0
