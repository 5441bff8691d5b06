"""Command line: python -m ospnext_ms COMMAND."""

import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from ospnext_ms.commands.options import OneLineParser

# Command -> (module with add_arguments(parser) and run(arguments) -> exit code, one line of help). Modules are imported
# when their command runs, so that nothing waits for a framework it does not need.
COMMANDS = {
    "generate": ("ospnext_ms.commands.generate", "make videos from prompts"),
    "serve": ("ospnext_ms.commands.serve", "a web page and an HTTP API to make videos"),
    "calibrate-cache": ("ospnext_ms.commands.calibrate_cache", "measure which steps of `generate` may be left out"),
    "prepare-data": ("ospnext_ms.commands.prepare_data", "make the cache of latents and texts that training reads"),
    "train": ("ospnext_ms.commands.train", "fine-tune a transformer on prepared videos"),
    "post-train": ("ospnext_ms.commands.post_train", "train adapters of a transformer on rewards"),
    "vbench": ("ospnext_ms.commands.vbench", "evaluate by VBench: make its videos, score them, add the scores up"),
    "plan": ("ospnext_ms.commands.plan", "memory, operations and communication of a run, before it starts"),
    "doctor": ("ospnext_ms.commands.doctor", "show what this machine can run"),
}

# They finish what they do when a signal comes (see parallel/interruption.py).
ANSWER_SIGNALS = frozenset({"generate", "serve", "train", "post-train", "vbench"})

# What the user can mend; of memory, NumPy says how much was asked for.
USER_ERRORS = (ValueError, OSError, FloatingPointError, MemoryError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; 2, after a line on stderr, where the user can mend what is wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # MindSpore's start-up warnings about accelerators that are not there would bury the messages of this program.
    os.environ.setdefault("GLOG_v", "3")
    parser = OneLineParser(prog="python -m ospnext_ms", description="Text-to-video diffusion on MindSpore.")
    parser.add_argument("--traceback", action="store_true", help="show where in the program an error came up")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {name: commands.add_parser(name, help=text, description=text) for name, (_, text) in COMMANDS.items()}
    chosen = next((argument for argument in arguments if argument in COMMANDS), None)
    # Before the first import of a library that starts threads, which inherit it.
    held = {signal.SIGTERM, signal.SIGINT} if chosen in ANSWER_SIGNALS else set()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        return _run(parser, parsers, chosen, arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _run(parser: OneLineParser, parsers: dict[str, OneLineParser], chosen: str | None, arguments: list[str]) -> int:
    if chosen is not None:
        importlib.import_module(COMMANDS[chosen][0]).add_arguments(parsers[chosen])
    options = parser.parse_args(arguments)
    try:
        return importlib.import_module(COMMANDS[options.command][0]).run(options)
    except USER_ERRORS as error:
        if options.traceback:
            raise
        print(f"error: {str(error) or type(error).__name__}{_advice(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("SIGINT: ended", file=sys.stderr)
        return 128 + signal.SIGINT


def _advice(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; what is complete stays: make room there, and the same command goes on"
    return ""


if __name__ == "__main__":
    sys.exit(main())
