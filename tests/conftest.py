"""Shared fixtures. MindSpore runs one operator after the other here, so that an error is raised where it happens."""

import importlib.util
import os

import pytest

from tests.support import generate_runs
from tests.support.paths import GOLDEN
from tests.support.text_to_video import write_weights


def pytest_configure():
    _share_cores()
    if importlib.util.find_spec("mindspore"):
        import mindspore

        mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
        mindspore.runtime.launch_blocking()


def _share_cores():
    """Several test processes keep to cores of their own: MindSpore's threads wait by spinning, in each other's way."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker:
        cores, count = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        number = int(worker.removeprefix("gw"))
        os.sched_setaffinity(0, cores[number::count] or {cores[number % len(cores)]})


def pytest_collection_modifyitems(items):
    """With several test processes a file's tests stay in one. The longest file comes first, not alone at the end."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(str(item.path)))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.name != "test_loop.py")


@pytest.fixture(scope="session")
def model_files(tmp_path_factory):
    """Folder with dit, vae and text_encoder.safetensors of the random model of tests.support.generate_runs."""
    folder = tmp_path_factory.mktemp("model")
    write_weights(folder, generate_runs.DIT, generate_runs.TEXT_ENCODER)
    return folder


@pytest.fixture(scope="session")
def golden():
    """Folder with inputs, weights and outputs of the original networks."""
    return GOLDEN
