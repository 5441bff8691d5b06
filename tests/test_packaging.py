"""What pyproject.toml promises against what the package imports, what is pinned, and the command that it names."""

import subprocess
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
# Trackers that are asked for; what `serve` needs, the last three of which gradio brings; what is imported in
# environments of their own, by adapters of rewards and by what runs upstream's VBench.
OPTIONAL = {"wandb", "swanlab", "gradio", "fastapi", "starlette", "uvicorn", "torch", "vbench"}


def pins_of(file):
    """{package: version} of a requirements file; every line but options pins one."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if line[0] not in "#-"]
    return {canonicalize_name(Requirement(line).name): line.split("==")[1] for line in lines}


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


@pytest.mark.slow
def test_requirements_resolve_on_aarch64(tmp_path):
    """Many Ascend hosts have such processors. All comes as wheels but jieba, pure Python without a wheel. That pip
    takes the wheel of mindspore does not say that it works: it is tagged for any platform (docs/ascend.md)."""
    pinned = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith(("-e", "#"))]
    (tmp_path / "pinned.txt").write_text("\n".join(pinned) + "\n")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "jieba==0.42.1", "-w", str(tmp_path / "wheels")], check=True)
    tags = [f"--platform={tag}_aarch64" for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux2014",
                                                   "manylinux_2_17", "linux")]
    done = subprocess.run([*pip, "install", "--dry-run", "--ignore-installed", "--only-binary=:all:", *tags,
                           "--python-version=3.11", "--implementation=cp", f"--find-links={tmp_path / 'wheels'}",
                           f"--target={tmp_path / 'target'}", "-r", str(tmp_path / "pinned.txt")],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "mindspore-2.9.0" in done.stdout.splitlines()[-1]
