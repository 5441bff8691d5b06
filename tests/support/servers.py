"""Servers for tests: HTTP in a thread of this process, and a worker that only pretends."""

import threading
from contextlib import contextmanager

from ospnext_ms.config.reader import load_config
from ospnext_ms.config.serve import ServeConfig
from ospnext_ms.serving.desk import Desk
from ospnext_ms.serving.run import http, listening
from ospnext_ms.serving.store import JobStore
from tests.support.paths import ROOT


def tiny_config(folder, **values):
    """ServeConfig of the tiny model in a folder, with values of its section serve."""
    return load_config(ServeConfig, ROOT / "yaml_configs" / "generate" / "tiny.yaml", values={
        "output_dir": str(folder)} | {f"serve.{key}": value for key, value in values.items()})


@contextmanager
def served(config, folder, make=None):
    """Context of (base address, Desk); `make(desk, job)` is called for each job, none is made without."""
    desk = Desk(JobStore(folder, config.serve.keep), config.serve.queue)
    ended = threading.Event()

    def work():
        while not ended.is_set():
            job = desk.take(0.1)
            if job is not None:
                make(desk, job)

    worker = threading.Thread(target=work)
    with listening(config.serve) as listener:
        address = "http://{}:{}".format(*listener.getsockname())
        with http(desk, config, listener):
            if make:
                worker.start()
            try:
                yield address, desk
            finally:
                ended.set()
                if make:
                    worker.join()
