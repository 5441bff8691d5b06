"""A server's configuration without weights, and a desk whose jobs a test makes itself."""

from functools import partial

import pytest

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
