"""`python -m ospnext_ms doctor`: what this machine can run, and what a missing piece means."""

from ospnext_ms.planning.machine import examine


def add_arguments(parser):
    """`doctor` has no options."""


def run(arguments):
    """Runs all checks, prints a line for each, and returns 0 where generation can work, else 1."""
    return 0 if examine() else 1
