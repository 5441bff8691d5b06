"""`python -m ospnext_ms serve`: a worker in the main thread, which the device belongs to, and HTTP in another."""

import socket
import threading
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from ospnext_ms.generation.checks import check_adapters, check_files
from ospnext_ms.parallel.degrees import world_size
from ospnext_ms.serving.desk import Desk
from ospnext_ms.serving.requests import config_of, read_request
from ospnext_ms.serving.store import JobStore
from ospnext_ms.storage.run_lock import RunLock

NEEDED = ("gradio", "fastapi", "uvicorn")
_SECONDS_TO_CLOSE = 5


def serve(config, interruption) -> None:
    """Serves a ServeConfig until a signal comes.

    Args:
        interruption: parallel.interruption.Interruption that notes signals.

    Raises:
        FileNotFoundError, ValueError: something the configuration names is not there or does not fit, packages are
            missing, or the folder is in use. OSError: the address cannot be listened at.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ValueError(f"serve needs {', '.join(missing)}: pip install 'gradio' in the version of pyproject.toml "
                         "(pip install -e '.[app]')")
    if world_size() > 1:
        raise ValueError("serve runs in one process, without msrun")
    check_files(config)
    for name in (None, *(adapter.name for adapter in config.serve.adapters)):
        check_adapters(config_of(read_request({"prompt": "a", "adapter": name}, config), config))

    from ospnext_ms.build import check_checkpoints
    from ospnext_ms.runtime import start
    from ospnext_ms.serving.worker import Worker

    with ExitStack() as stack:
        stack.enter_context(RunLock(Path(config.output_dir)))
        listener = stack.enter_context(listening(config.serve))
        desk = Desk(JobStore(Path(config.output_dir) / "jobs", config.serve.keep), config.serve.queue)
        runtime = start(config.context)
        check_checkpoints(config.model)
        stack.enter_context(http(desk, config, listener))
        interruption.begin()
        Worker(config, runtime, desk, interruption).run()


def listening(section):
    """A socket that listens where a ServeSection says; ValueError where nothing can."""
    try:
        return socket.create_server((section.address, section.port),
                                    family=socket.AF_INET6 if ":" in section.address else socket.AF_INET)
    except OSError as error:
        raise ValueError(f"cannot listen at {section.address}, port {section.port} ({error.strerror or error}); "
                         "give another by serve.address and serve.port") from error


@contextmanager
def http(desk, config, listener):
    """Context in which a thread answers at a listening socket; prints where."""
    import uvicorn

    from ospnext_ms.serving.app import make_app

    server = uvicorn.Server(uvicorn.Config(make_app(desk, config), log_level="warning", lifespan="on",
                                           timeout_graceful_shutdown=_SECONDS_TO_CLOSE, access_log=False))
    thread = threading.Thread(target=server.run, args=([listener],), name="http")
    thread.start()
    address, port = listener.getsockname()[:2]
    print(f"http://{f'[{address}]' if ':' in address else address}:{port}  page and API (/v1/videos)"
          + ("  with ?token=" if config.serve.token else ""), flush=True)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
