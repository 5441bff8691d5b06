"""A server's configuration without weights, and a desk whose jobs a test makes itself."""

import pytest

from ospnext_ms.config.reader import load_config
from ospnext_ms.config.serve import ServeConfig
from ospnext_ms.serving.desk import Desk
from ospnext_ms.serving.store import JobStore
from tests.support.paths import ROOT

TINY = ROOT / "yaml_configs" / "generate" / "tiny.yaml"


@pytest.fixture
def configure(tmp_path):
    """Function (**values of the section serve) -> ServeConfig of the tiny model."""
    def configure(**values):
        return load_config(ServeConfig, TINY, values={"output_dir": str(tmp_path / "served")} | {
            f"serve.{key}": value for key, value in values.items()})

    return configure


@pytest.fixture
def desk(tmp_path):
    return Desk(JobStore(tmp_path / "jobs", keep=3), length=2)
