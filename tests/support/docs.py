"""What the pages say: their links, and the commands in them."""

import re
import shlex
from itertools import takewhile

from tests.support.paths import ROOT

PROGRAMS = ("bash", "python", "ospnext-ms", "pip", "pytest")


def pages():
    """Every page of documentation."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def links(page):
    """Targets of a page's links and pictures that lie in the repository, without anchors."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _without_code(page.read_text()))
    return [target.partition("#")[0] for target in targets if not re.match(r"https?:|mailto:|#", target)]


def commands(page):
    """Commands in fenced blocks and in `code` of a page, as a shell would take them apart, joined by single spaces."""
    text = page.read_text()
    lines = [line for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) for line in _shell_lines(block)]
    lines += re.findall(r"`([^`\n]+)`", _without_code(text))
    return _commands_of(lines)


def head_commands(config):
    """Commands in the comment that a YAML file begins with."""
    lines = takewhile(lambda line: line.startswith("#"), config.read_text().splitlines())
    return _commands_of(_shell_lines("\n".join(line.removeprefix("#").strip() for line in lines)))


def _commands_of(lines):
    words = [shlex.split(line, comments=True) for line in lines if line.split(" ", 1)[0] in PROGRAMS]
    return list(dict.fromkeys(shlex.join(command) for command in words if len(command) > 1))


def _shell_lines(block):
    """Lines of a fenced block with continuations joined, and variables that it sets put in."""
    variables = {}
    for line in re.sub(r"\\\n\s*", "", block).splitlines():
        assigned = re.fullmatch(r'(\w+)="([^"]*)"', line)
        if assigned:
            variables[assigned[1]] = assigned[2]
        else:
            yield re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), line)


def _without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
