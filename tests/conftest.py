"""Which tests are run, on which cores, and what they share."""

import os
import signal
import sys
from functools import cache, partial
from importlib.machinery import PathFinder
from itertools import chain, combinations

import pytest
from _pytest.mark.expression import Expression

from tests.support import generate_runs
from tests.support.imports import FRAMEWORKS, marks_of
from tests.support.paths import GOLDEN
from tests.support.text_to_video import write_weights

# The marks by which tests are chosen, see pyproject.toml.
LANES = frozenset({"framework", "processes", "slow"})


class _WithoutFrameworks(PathFinder):
    """Finds all modules but the frameworks."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname in FRAMEWORKS else super().find_spec(fullname, path, target)


def pytest_configure(config):
    _share_cores()
    # A script's background jobs are started with SIGINT ignored, which what the tests start would inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not _may_match(config, {"framework"}, LANES):
        # A test that needs one and does not say so fails here as it would on a machine without.
        sys.meta_path[sys.meta_path.index(PathFinder)] = _WithoutFrameworks


def pytest_ignore_collect(collection_path, config):
    """A file none of whose tests can be meant by -m is not imported: importing a framework takes seconds."""
    if collection_path.suffix == ".py" and collection_path.name.startswith("test_"):
        return not _may_match(config, *marks_of(collection_path)) or None
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks tests whose file imports a framework. The longest files come first, so that none ends alone."""
    for item in items:
        if "framework" in marks_of(item.path)[0] or "model_files" in item.fixturenames:
            item.add_marker("framework")
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    if sys.modules.get("mindspore"):
        _set_up_mindspore()


@cache
def _set_up_mindspore():
    """One operator after the other, so that an error is raised where it happens."""
    import mindspore

    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    mindspore.runtime.launch_blocking()


def _may_match(config, certain, possible):
    """Whether -m can mean a test with all marks of `certain` and any others of `possible`."""
    if not config.option.markexpr:
        return True
    expression = Expression.compile(config.option.markexpr)
    certain, others = LANES & certain, (LANES & possible) - certain
    more = chain.from_iterable(combinations(others, count) for count in range(len(others) + 1))
    return any(expression.evaluate(partial(_is_in, certain.union(some))) for some in more)


def _is_in(marks, name, **_):
    return name in marks


def _share_cores():
    """Several test processes keep to cores of their own: MindSpore's threads wait by spinning, in each other's way."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker:
        cores, count = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        number = int(worker.removeprefix("gw"))
        os.sched_setaffinity(0, cores[number::count] or {cores[number % len(cores)]})


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
