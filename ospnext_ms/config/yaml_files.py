"""YAML files as plain values: a file may extend another one, and single values are set from outside.

`extends: FILE` stands at the top level and names one file, relative to the one it stands in. Sections (mappings) are
merged key by key, at every depth; anything else takes the place of what the extended file has: a list as a whole, and
null too, which clears what is there.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ospnext_ms.config.checks import ConfigError
from ospnext_ms.storage.files import current_folder

EXTENDS = "extends"
MAX_DEPTH = 32
# Characters of a whole number in its text; Python itself turns no more than 4,300 digits into a number or back.
MAX_INT_LENGTH = 100
MERGE_TAG, INT_TAG = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:int"


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that 1e-4 is a number, and that errors are: a key given twice, one section or
    list in two places (aliases, merges), depth without end, a text that has not the form of its kind (2020-99-99)."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if self.depth == MAX_DEPTH:
            raise _error(f"more than {MAX_DEPTH} levels inside one another", event.start_mark)
        if isinstance(event, yaml.AliasEvent) and isinstance(self.anchors.get(event.anchor), yaml.CollectionNode):
            raise _error(f"*{event.anchor} repeats a section or list, which is not read; use {EXTENDS}: FILE, or write "
                         "it out", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = []
        for key_node, _ in node.value:
            if key_node.tag == MERGE_TAG:
                raise _error(f"<< merges are not read; use {EXTENDS}: FILE", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _error(f"the key {key!r} is given twice", key_node.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag == INT_TAG and len(node.value) > MAX_INT_LENGTH:
            raise _error(f"a whole number of {len(node.value)} characters is too large", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            # What PyYAML's constructors let through.
            raise _error(f"{str(node.value)[:40]!r} is no {node.tag.rpartition(':')[2]}", node.start_mark) from error


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _error(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def parse_yaml(text: str, name: str | Path) -> Any:
    """Value of a YAML text; ConfigError, in one line that begins with `name`, where it is none."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        context = f" ({error.context})" if error.context else ""
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{name} is not valid YAML: {error.problem}{context}{place}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error


def read_values(path: str | Path) -> tuple[dict, dict[str, Path]]:
    """Values of a YAML file, merged with those of the files it extends.

    Returns:
        (values, origins): nested mappings, which are the caller's; {"a.b.c": file} of every value in them.

    Raises:
        FileNotFoundError: there is no such file, or one that is extended does not exist.
        ConfigError: a file is not YAML, holds no sections, or extends itself.
    """
    values, origins = {}, {}
    for file, mapping in reversed(_chain(Path(path))):
        _merge(values, mapping, file, origins, "")
    return values, origins


def _chain(path: Path) -> list[tuple[Path, dict]]:
    """[(file, its own values)] from a file to the last of those it extends, one through the other."""
    chain, names = [], []
    while True:
        names.append(str(path))
        if path.resolve() in (file.resolve() for file, _ in chain):
            raise ConfigError(f"{names[0]}: {EXTENDS} goes in a circle: {' -> '.join(names)}")
        if not path.is_file():
            by = f", which {names[-2]} extends" if chain else ""
            raise FileNotFoundError(f"no configuration file {path}{by} {current_folder()}")
        mapping = _read_file(path)
        chain.append((path, mapping))
        if EXTENDS not in mapping:
            return chain
        parent = mapping.pop(EXTENDS)
        if not isinstance(parent, str):
            raise ConfigError(f"{path}: {EXTENDS} is {parent!r}; it must be the name of one file, relative to this one")
        path = path.parent / parent


def _read_file(path: Path) -> dict:
    try:
        mapping = parse_yaml(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path} must hold sections (key: value), not {describe(mapping)}")
    return mapping


def _merge(values: dict, mapping: dict, file: Path, origins: dict[str, Path], section: str) -> None:
    """Puts `mapping` of `file` over `values`, both the contents of `section`, and notes in `origins` what is whose."""
    for key, value in mapping.items():
        where = join(section, key)
        if isinstance(value, dict) and value:
            if not isinstance(values.get(key), dict):
                values[key] = {}
                _forget(origins, where)
            _merge(values[key], value, file, origins, where)
        elif not isinstance(value, dict) or not isinstance(values.get(key), dict):
            values[key] = value
            _forget(origins, where)
            origins[where] = file


def _forget(origins: dict[str, Path], key: str) -> None:
    for other in [other for other in origins if is_in(other, key)]:
        del origins[other]


def origin_of(problem: str, origins: dict[str, Path]) -> Path | None:
    """The file that all values stand in that a line "a.b.c: what is wrong" is about, or None."""
    key = problem.partition(":")[0].partition("[")[0]
    files = {file for other, file in origins.items() if is_in(other, key)}
    return files.pop() if len(files) == 1 else None


def is_in(key: str, section: str) -> bool:
    """Whether a dotted key is `section` itself or stands in it."""
    return key == section or key.startswith(f"{section}.")


def join(section: str, key: object) -> str:
    """Dotted name of a key in a section, whose name is empty at the top level."""
    return f"{section}.{key}" if section else str(key)


def parse_override(text: str) -> tuple[str, Any]:
    """("a.b.c", value) of "a.b.c=value"; ConfigError where it has not that form."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {text!r}: expected section.key=value, for example sampling.steps=20")
    return key, parse_yaml(value, f"--set {text!r}: the value, which may need quotes,")


def set_value(values: dict, origins: dict[str, Path], key: str, value: Any) -> None:
    """Sets "a.b.c" in what read_values returned; sections on the way that are missing are made, and ConfigError names
    one that is something else."""
    *sections, last = key.split(".")
    for i, name in enumerate(sections):
        if values.get(name) is None:
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            raise ConfigError(f"--set {key}: {'.'.join(sections[:i + 1])} is {describe(values)}, not a section")
    values[last] = value
    _forget(origins, key)


def describe(value: object) -> str:
    """A value in an error message, at most a line of it."""
    if isinstance(value, dict):
        return f"a section ({_shortened(', '.join(map(str, value)))})"
    names = {str: "the text ", bool: "the truth value ", int: "the number ", float: "the number ", list: "the list "}
    return "null" if value is None else f"{names.get(type(value), '')}{_shortened(repr(value))}"


def _shortened(text: str, width: int = 80) -> str:
    return text if len(text) <= width else text[:width - 3] + "..."
