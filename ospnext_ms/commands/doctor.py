"""`python -m ospnext_ms doctor`: what this machine can run, and what a missing piece means."""

from argparse import ArgumentParser, Namespace

from ospnext_ms.planning.machine import examine


def add_arguments(parser: ArgumentParser) -> None:
    """`doctor` has no options."""


def run(arguments: Namespace) -> int:
    """Runs `doctor` and returns the exit code: 0 where generation can work, else 1."""
    return 0 if examine() else 1
