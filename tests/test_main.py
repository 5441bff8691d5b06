"""The command line itself."""

import errno
import os
import re
import subprocess
import sys

import pytest

from ospnext_ms import __main__ as command_line
from tests.support.paths import ROOT


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "ospnext_ms", *arguments], cwd=ROOT, capture_output=True, text=True,
                          check=False)


def test_a_wrong_key_fails_at_once_and_without_a_traceback():
    done = run("generate", "--config", "yaml_configs/generate/tiny.yaml", "--set", "sampling.stpes=3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == ("error: sampling.stpes: unknown key 'stpes' in section sampling; did you mean steps?\n")


@pytest.mark.parametrize("arguments", [
    [], ["generat"], ["generate"], ["generate", "--config"], ["generate", "--config", "x", "--seed", "one"],
    ["generate", "--config", "x", "--sed", "1"], ["generate", "--config", "x", "--prompt", "a", "--prompt-file", "b"],
    ["doctor", "--config", "x"],
])
def test_options_that_do_not_exist_or_clash(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.main(arguments)
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert re.fullmatch(r"error: .+; see python -m ospnext_ms( [a-z]+)? --help\n", told)


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    # A name as long as the column stands on a line of its own.
    assert all(re.search(rf"\n    {name}\s", shown) for name in command_line.COMMANDS)


def test_every_command_has_options_and_runs():
    for module, _ in command_line.COMMANDS.values():
        loaded = __import__(module, fromlist=["run"])
        assert callable(loaded.add_arguments)
        assert callable(loaded.run)


def test_a_traceback_on_demand(tmp_path, capsys):
    arguments = ["generate", "--config", str(tmp_path / "nowhere.yaml")]
    assert command_line.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: no configuration file")
    with pytest.raises(FileNotFoundError):
        command_line.main(["--traceback", *arguments])


def raising(error):
    """A command's module whose run raises."""
    class Module:
        @staticmethod
        def add_arguments(parser):
            pass

        @staticmethod
        def run(arguments):
            raise error

    return Module


def test_a_full_disk_says_what_to_do(monkeypatch, capsys):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/contact_sheet.png")
    monkeypatch.setattr(command_line.importlib, "import_module", lambda name: raising(error))
    assert command_line.main(["doctor"]) == 2
    told = capsys.readouterr().err
    assert re.fullmatch(r"error: .*'out/contact_sheet.png'; what is complete stays: make room there, .*\n", told)


def test_mistakes_of_the_program_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(command_line.importlib, "import_module", lambda name: raising(KeyError("a bug")))
    with pytest.raises(KeyError, match="a bug"):
        command_line.main(["doctor"])


@pytest.mark.parametrize(("error", "line"), [
    (MemoryError("Unable to allocate 8 GiB"), "error: Unable to allocate 8 GiB\n"),
    (MemoryError(), "error: MemoryError\n"),
])
def test_what_the_user_can_mend_is_a_line(monkeypatch, capsys, error, line):
    monkeypatch.setattr(command_line.importlib, "import_module", lambda name: raising(error))
    assert command_line.main(["doctor"]) == 2
    assert capsys.readouterr().err == line
