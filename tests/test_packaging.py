"""What pyproject.toml promises against what the package imports, what is pinned, and the command that it names."""

import sys
import tomllib
from importlib.metadata import EntryPoint

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ospnext_ms
from ospnext_ms.__main__ import main
from tests.support.imports import imported_names, modules_of
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Where the name that is imported is not the name of the package.
IMPORTED_AS = {"opencv-python-headless": "cv2", "pyyaml": "yaml"}
# Imported by adapters of rewards, which bring what they need.
OPTIONAL = {"torch"}


def pins_of(file):
    """{package: version} of a requirements file; every line but options pins one."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if line[0] not in "#-"]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_what_the_package_imports_is_declared_and_nothing_else():
    imported = {name.partition(".")[0].lower() for path in modules_of(ROOT, ["ospnext_ms"]).values()
                for name in imported_names(path)}
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert imported - OPTIONAL - {"ospnext_ms", *sys.stdlib_module_names} == {
        IMPORTED_AS.get(name, name) for name in declared}


@pytest.mark.parametrize(("declared", "file"), [
    (PROJECT["dependencies"], "requirements.txt"),
    (PROJECT["optional-dependencies"]["test"], "requirements-test.txt"),
])
def test_what_is_declared_is_pinned_to_a_version_that_is_allowed(declared, file):
    pins = pins_of(file)
    for requirement in map(Requirement, declared):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (ospnext_ms.__version__, PROJECT["license"])


def test_the_pins_come_with_the_package_itself():
    assert "-e ." in (ROOT / "requirements.txt").read_text().splitlines()


def test_the_installed_command_is_the_command_line():
    assert EntryPoint("ospnext-ms", PROJECT["scripts"]["ospnext-ms"], "console_scripts").load() is main
