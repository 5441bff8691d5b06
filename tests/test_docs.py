"""The pages: links lead somewhere, pages are short, and every command is one that runs."""

import argparse
import importlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from ospnext_ms import __main__ as command_line
from ospnext_ms.models.lora_config import LoRAConfig
from ospnext_ms.storage.peft_format import write_adapter
from tests.support import docs
from tests.support.doc_commands import NOT_RUN, PLACEHOLDERS, RUN, SHORTER, SHORTER_CONFIGS, TESTED
from tests.support.imports import parsed
from tests.support.paths import CONFIGS, ROOT, TINY_WEIGHTS

README_LINES, PAGE_LINES = 200, 300
IN_PAGES = list(dict.fromkeys(chain.from_iterable(map(docs.commands, docs.pages()))))
IN_CONFIGS = list(dict.fromkeys(chain.from_iterable(map(docs.head_commands, sorted(CONFIGS.rglob("*.yaml"))))))
SCENARIOS = {name: [shlex.join(shlex.split(command)) for command in commands] for name, commands in RUN.items()}


@pytest.mark.parametrize("page", docs.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert [link for link in docs.links(page) if not (page.parent / link).exists()] == []


def test_pages_are_short():
    lines = {page: len(page.read_text().splitlines()) for page in docs.pages()}
    assert lines.pop(ROOT / "README.md") <= README_LINES
    assert {page: count for page, count in lines.items() if count > PAGE_LINES} == {}


def test_every_command_is_run_or_has_a_reason_not_to():
    """One that is not: add it to tests/support/doc_commands.py."""
    run = set(chain.from_iterable(SCENARIOS.values()))
    patterns = [*TESTED, *NOT_RUN]
    unknown = [command for command in IN_PAGES
               if command not in run and not any(fnmatchcase(command, pattern) for pattern in patterns)]
    assert unknown == []
    gone = [command for command in run if command not in IN_PAGES]
    gone += [pattern for pattern in patterns if not any(fnmatchcase(command, pattern) for command in IN_PAGES)]
    assert gone == []


@pytest.mark.parametrize("test", sorted(set(TESTED.values())))
def test_tests_that_run_commands_exist(test):
    file, name = test.split("::")
    assert name in {getattr(node, "name", None) for node in parsed(ROOT / file).body}


def test_an_unlisted_command_and_a_broken_link_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('[a](gone.md) [b](https://example.org) [c](page.md#top)\n`python -m x` `x.py`\n```bash\n'
                    'a="--one 1"\n'
                    'python -m y $a \\\n  --two "2 3"   # why\n[d](no_link.md)\n```\n')
    assert docs.links(page) == ["gone.md", "page.md"]
    assert docs.commands(page) == ["python -m y --one 1 --two '2 3'", "python -m x"]


class UnderstoodError(Exception):
    """Ends a command once its options are read."""


@pytest.fixture
def stop_when_understood(monkeypatch):
    """Programs read their options, and their configuration, and do no more."""
    parse = argparse.ArgumentParser.parse_args

    def read_options(self, *arguments):
        parse(self, *arguments)
        raise UnderstoodError

    def then_stop(read):
        def stopped(*arguments, **options):
            read(*arguments, **options)
            raise UnderstoodError
        return stopped

    def stop(program):
        if program == "ospnext_ms":
            for module, _ in command_line.COMMANDS.values():
                module = importlib.import_module(module)
                for name in {"load_config", "plan"} & vars(module).keys():
                    monkeypatch.setattr(module, name, then_stop(getattr(module, name)))
            doctor = importlib.import_module("ospnext_ms.commands.doctor")
            monkeypatch.setattr(doctor, "examine", then_stop(lambda: None))
            vbench = importlib.import_module("ospnext_ms.commands.vbench")
            for name in ("score", "read_results"):
                monkeypatch.setattr(vbench, name, then_stop(lambda *arguments, **options: None))
        else:
            monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read_options)

    return stop


def of_programs(commands):
    """(program, arguments) of commands that start one of this repository; scripts become what they start."""
    for command in commands:
        match shlex.split(replaced(command, PLACEHOLDERS)):
            case ["bash", "scripts/msrun.sh", name, config, _, _, *options]:
                yield pytest.param("ospnext_ms", [name, "--config", config, *options], id=command)
            case ["bash", "scripts/quickstart.sh", *options]:
                yield pytest.param("ospnext_ms", ["generate", "--config", "yaml_configs/generate/tiny.yaml", *options],
                                   id=command)
            case ["bash", script, *_]:
                assert (ROOT / script).is_file(), command
            case ["pip", *_]:
                pass
            case ["ospnext-ms", *options] | ["python", "-m", "ospnext_ms", *options]:
                yield pytest.param("ospnext_ms", options, id=command)
            case ["python", "-m", module, *options]:
                yield pytest.param(module, options, id=command, marks=pytest.mark.framework)
            case ["python", script, *options]:
                module = script.removesuffix(".py").replace("/", ".")
                yield pytest.param(module, options, id=command, marks=pytest.mark.framework)
            case _:
                raise AssertionError(f"what program is that? {command}")


def replaced(command, changes):
    for text, other in changes.items():
        command = command.replace(text, other)
    return command


@pytest.mark.parametrize(("program", "arguments"), list(of_programs([*IN_PAGES, *IN_CONFIGS])))
def test_a_command_is_understood_by_its_program(stop_when_understood, monkeypatch, program, arguments):
    stop_when_understood(program)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    if program != "ospnext_ms" and importlib.util.find_spec(program).submodule_search_locations:
        program += ".__main__"
    main = command_line.main if program == "ospnext_ms" else importlib.import_module(program).main
    with pytest.raises(UnderstoodError):
        main()


def copy_of_the_repository(folder):
    """Code, configurations and weights, cut short, beside stand-ins for what the pages call by a name."""
    for name in ("ospnext_ms", "tools", "scripts", "yaml_configs", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    for name, changes in SHORTER_CONFIGS.items():
        path = folder / "yaml_configs" / name
        text = path.read_text()
        for long, short in changes.items():
            assert text.count(long) == 1, f"{name}: {long}"
            text = text.replace(long, short)
        path.write_text(text)
    (folder / "prompts.txt").write_text("a 3 moving left\n")
    return folder


def stand_ins(folder):
    """Checkpoints of the tiny family under the names of the large models' files, and an adapter."""
    torch, safetensors = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    for name in ("Wan2.1-T2V-1.3B", "DIT"):
        (folder / name).mkdir()
        shutil.copy(TINY_WEIGHTS / "dit_sparse.safetensors", folder / name)
    torch.save(safetensors.load_file(TINY_WEIGHTS / "vae.safetensors"), folder / "Wan2.1_VAE.pth")
    torch.save(safetensors.load_file(TINY_WEIGHTS / "umt5.safetensors"), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    low, high = np.ones((2, 128), np.float32), np.ones((128, 2), np.float32)
    write_adapter(folder / "ADAPTER", LoRAConfig(rank=2, alpha=2.0, targets=("q",)),
                  {"blocks.0.self_attn.q": (low, high)})


@pytest.mark.framework
@pytest.mark.parametrize("scenario", [
    pytest.param(name, marks=() if name == "plan" else (pytest.mark.slow, pytest.mark.long)) for name in RUN])
def test_commands_of_the_pages_run(tmp_path, scenario):
    folder = copy_of_the_repository(tmp_path / "copy")
    if scenario == "convert":
        stand_ins(folder)
    binaries = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(folder),
                                "OSPNEXT_VENV": sys.prefix, "OSPNEXT_PYTHON": sys.executable}
    for command in SCENARIOS[scenario]:
        command = replaced(command, PLACEHOLDERS | SHORTER)
        began = time.monotonic()
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
        print(f"{time.monotonic() - began:6.1f} s  {command}")
