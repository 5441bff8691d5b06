"""mindformers, imported when it is first needed: it takes seconds, and writes a folder of logs where it is told to."""

import importlib
import os


def load_mindformers(log_folder="output/mindformers"):
    """The package mindformers. `log_folder` is where its first import puts its logs."""
    os.environ.setdefault("LOCAL_DEFAULT_PATH", str(log_folder))
    return importlib.import_module("mindformers")
