"""Shared fixtures. MindSpore runs one operator after the other here, so that an error is raised where it happens."""

import importlib.util
from pathlib import Path

import pytest


def pytest_configure():
    if importlib.util.find_spec("mindspore"):
        import mindspore

        mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
        mindspore.runtime.launch_blocking()


def pytest_collection_modifyitems(items):
    """With several test processes a file's tests stay in one, and so do all that start jobs of real workers."""
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group("distributed" if folder == "distributed" else str(item.path)))


@pytest.fixture(scope="session")
def golden():
    """Folder with inputs, weights and outputs of the original networks."""
    return Path(__file__).parent / "golden"
