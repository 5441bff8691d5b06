"""The random model of tests.support.generate_runs as files, and the configuration that runs it."""

import pytest

from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import read_section
from tests.support import generate_runs as runs
from tests.support.configs import changed


@pytest.fixture
def mapping(model_files, tmp_path):
    """The configuration of the random model as plain values, to be changed; results go to tmp_path/output."""
    return runs.settings(model_files, tmp_path / "output")


@pytest.fixture
def configure(mapping):
    """Function that changes sections ({"sampling": {...}}) and returns the GenerateConfig."""
    def change(**sections):
        mapping.update(changed(mapping, **sections))
        return read_section(GenerateConfig, mapping)

    return change
