"""Reads YAML into frozen dataclasses: unknown and missing keys and wrong types are errors, all of them listed."""

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar

from ospnext_ms.config.checks import ConfigError, FreeText
from ospnext_ms.config.yaml_files import describe, join, origin_of, parse_override, read_values, set_value

Section = TypeVar("Section")
# No number of a configuration is larger: libraries take whole ones of up to 32 bits.
MAX_NUMBER = 2**32


def load_config(cls: type[Section], path: str | Path, overrides: Iterable[str] = (),
                values: Mapping[str, Any] | None = None) -> Section:
    """Reads the YAML file `path`, and those it extends, into the dataclass `cls`.

    Args:
        overrides: texts "a.b.c=value", the value parsed as YAML, applied in order.
        values: {"a.b.c": value}, taken as they are and applied last (what a command-line option carries).

    Raises:
        ConfigError: a file is not YAML, a key is unknown, missing or given twice, a value has the wrong type or cannot
            be run; all problems found are listed.
        FileNotFoundError: there is no such file, or one that it extends does not exist.
    """
    mapping, origins = read_values(path)
    for override in overrides:
        set_value(mapping, origins, *parse_override(override))
    for key, value in (values or {}).items():
        set_value(mapping, origins, key, value)
    _check_run_mode(cls, mapping, path)
    try:
        return read_section(cls, mapping)
    except ConfigError as error:
        raise ConfigError("\n".join(_with_origin(line, origins, path) for line in str(error).split("\n"))) from error


def _with_origin(problem: str, origins: dict[str, Path], path: str | Path) -> str:
    """A line about a value, with the file it stands in where that is not `path` itself."""
    file = origin_of(problem, origins)
    return problem if file in (None, Path(path)) else f"{problem} (in {file})"


def read_section(cls: type[Section], mapping: object, path: str = "") -> Section:
    """Instance of the dataclass `cls` from a mapping; `path` is the section's name in error messages.

    A field's annotation is its type: bool, int, float (whole numbers are accepted), str, dict (of anything), Literal, a
    dataclass (a nested section), tuple[X, ...] or tuple[X, Y] (a list) of these, and any of them with None. ValueErrors
    of __post_init__ become problems of that section. RENAMED of a class, {old key: field}, are keys still read, with a
    line on stderr that says so; REPLACED, {old key: words}, are keys no longer read, with what to write instead.

    Raises:
        ConfigError: listing every unknown and missing key and every value of the wrong type.
    """
    problems = []
    section = _read(cls, mapping, path, problems, cls)
    if problems:
        raise ConfigError("\n".join(problems))
    return section


def _read(cls: type, mapping: object, path: str, problems: list[str], root: type) -> Any:
    if not isinstance(mapping, dict):
        problems.append(f"{path}: must be a section with the keys {', '.join(_keys(cls))}, not {describe(mapping)}")
        return None
    before = len(problems)
    mapping = _renamed(cls, mapping, path, problems)
    for key in mapping:
        if key in (replaced := getattr(cls, "REPLACED", {})):
            problems.append(f"{join(path, key)}: this key is no longer read; {replaced[key]}")
        elif key not in _keys(cls):
            problems.append(_unknown_key(key, path, cls, root))
    hints = typing.get_type_hints(cls)
    values = {}
    for field in _fields(cls):
        where, hint = join(path, field.name), hints[field.name]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        # A section cleared in a file that extends another one, or whose lines are all comments, is as if left out.
        given = field.name in mapping and not (
            mapping[field.name] is None and _is_section(hint) and not required)
        if given:
            values[field.name] = _convert(hint, mapping[field.name], where, problems, root)
        elif required:
            problems.append(f"{where}: missing; it must be given")
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ConfigError as error:
        problems.extend(str(error).split("\n"))
    except ValueError as error:
        problems.append(f"{path}: {error}" if path else str(error))
    return None


def _renamed(cls: type, mapping: dict, path: str, problems: list[str]) -> dict:
    """The mapping with today's names of its keys."""
    mapping = dict(mapping)
    for old, new in getattr(cls, "RENAMED", {}).items():
        if old not in mapping:
            continue
        if new in mapping:
            problems.append(f"{join(path, old)}: this is the old name of {new}, which is given too; leave one out")
        else:
            print(f"{join(path, old)} is called {join(path, new)} now; the old name is still read", file=sys.stderr)
            mapping[new] = mapping[old]
        del mapping[old]
    return mapping


def _convert(hint: Any, value: Any, where: str, problems: list[str], root: type) -> Any:
    options = _options(hint)
    if value is None and type(None) in options:
        return None
    for option in options:
        if _is_section(option):
            return _read(option, value, where, problems, root)
        if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
            return _convert_list(typing.get_args(option), value, where, problems, root)
        if _is_a(value, option):
            return _as(option, value)
    expected = " or ".join(map(_describe_type, options))
    if _is_number(value) and not _is_in_range(value) and (int in options or float in options):
        expected = "finite" if value != value else f"between {-MAX_NUMBER} and {MAX_NUMBER}"
    elif isinstance(value, str) and str in options:
        problems.append(f"{where}: {describe(value)} is empty; give one")
        return None
    problems.append(f"{where}: {describe(value)} is not {expected}")
    return None


def _convert_list(hints: tuple, value: Sequence, where: str, problems: list[str], root: type) -> tuple | None:
    """`hints` are those of a tuple: of every entry, or one for all and an ellipsis."""
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(value)
    if len(hints) != len(value):
        problems.append(f"{where}: {describe(value)} has {len(value)} entries; it must have {len(hints)}")
        return None
    return tuple(_convert(hint, entry, f"{where}[{i}]", problems, root)
                 for i, (hint, entry) in enumerate(zip(hints, value, strict=True)))


def _is_a(value: Any, option: Any) -> bool:
    """Whether a plain value is of a type that is neither a section nor a list."""
    if typing.get_origin(option) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in typing.get_args(option))
    if option is float:
        return _is_number(value) and _is_in_range(value)
    if option is str:
        return type(value) is str and bool(value.strip())
    if option is FreeText:
        return type(value) is str
    return type(value) is option and (option is not int or _is_in_range(value))


def _as(option: Any, value: Any) -> Any:
    return float(value) if option is float else value


def _is_section(option: Any) -> TypeGuard[type]:
    return dataclasses.is_dataclass(option)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_in_range(number: Any) -> bool:
    return -MAX_NUMBER <= number <= MAX_NUMBER


def _options(hint: Any) -> tuple:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _describe_type(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(option)))
    names = {int: "a whole number", float: "a number", str: "a text", FreeText: "a text", bool: "true or false",
             tuple: "a list", dict: "a section", type(None): "null"}
    return names[typing.get_origin(option) or option]


def _unknown_key(key: object, path: str, cls: type, root: type) -> str:
    section = f"section {path}" if path else "the top level"
    valid = _keys(cls)
    near = difflib.get_close_matches(str(key), valid, n=1)
    elsewhere = [p for p in _key_paths(root, "") if p.split(".")[-1] == key]
    if near:
        hint = f"did you mean {near[0]}?"
    elif elsewhere:
        hint = f"did you mean {' or '.join(elsewhere)}?"
    else:
        hint = f"valid keys: {', '.join(valid)}"
    return f"{join(path, key)}: unknown key {key!r} in {section}; {hint}"


def _key_paths(cls: type, path: str) -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for key in _keys(cls):
        yield join(path, key)
        for option in _options(hints[key]):
            if _is_section(option):
                yield from _key_paths(option, join(path, key))


def _fields(cls: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _keys(cls: type) -> list[str]:
    return [field.name for field in _fields(cls)]


def _check_run_mode(cls: type, mapping: dict, path: str | Path) -> None:
    hint = typing.get_type_hints(cls).get("run_mode")
    given = mapping.get("run_mode")
    if hint and given is not None and given not in typing.get_args(hint):
        raise ConfigError(f"{path} is for run_mode {given!r}; this command runs {_describe_type(hint)}")
