"""A server's configuration without weights, a desk whose jobs a test makes itself, and a full disk."""

import errno
import os
from functools import partial

import pytest

from ospnext_ms.serving import store
from ospnext_ms.serving.desk import Desk
from ospnext_ms.serving.store import JobStore
from tests.support.servers import tiny_config


@pytest.fixture
def configure(tmp_path):
    """Function (**values of the section serve) -> ServeConfig of the tiny model."""
    return partial(tiny_config, tmp_path / "served")


@pytest.fixture
def desk(tmp_path):
    return Desk(JobStore(tmp_path / "jobs", keep=3), length=2)


@pytest.fixture
def full_disk(monkeypatch):
    """Function (yes or no): whether jobs find the disk full from now on."""
    real = store.atomic_path

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    return lambda is_full: monkeypatch.setattr(store, "atomic_path", full if is_full else real)
