"""Reads YAML into frozen dataclasses: unknown and missing keys and wrong types are errors, all of them listed."""

import dataclasses
import difflib
import re
import types
import typing
from pathlib import Path
from typing import Literal

import yaml


class ConfigError(ValueError):
    """A configuration that cannot be run; the message has one line per problem."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that 1e-4 is a number and a key given twice is an error."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _construct_mapping(loader, node):
    keys = [loader.construct_object(key) for key, _ in node.value]
    for i, key in enumerate(keys):
        if key in keys[:i]:
            mark = node.value[i][0].start_mark
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def load_config(cls, path, overrides=(), values=None):
    """Reads the YAML file `path` into the dataclass `cls`.

    Args:
        overrides: texts "a.b.c=value", the value parsed as YAML, applied in order.
        values: {"a.b.c": value}, taken as they are and applied last (what a command-line option carries).

    Raises:
        ConfigError: the file is not YAML, a key is unknown, missing or given twice, a value has the wrong type or
            cannot be run; all problems found are listed.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file {path} (current folder {Path.cwd()})")
    try:
        mapping = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path} must hold sections (key: value), not {_describe(mapping)}")
    for override in overrides:
        key, value = parse_override(override)
        set_value(mapping, key, value)
    for key, value in (values or {}).items():
        set_value(mapping, key, value)
    _check_run_mode(cls, mapping, path)
    return read_section(cls, mapping)


def add_config_options(parser, files, example):
    """Adds --config and --set, for load_config, to a command's options. `files`: which ones; `example`: KEY=VALUE."""
    parser.add_argument("--config", required=True, metavar="F", help=f"YAML file, see {files}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                        help=f"override one value of the file, for example {example}; may be repeated")


def parse_yaml(text):
    """Value of a YAML text; yaml.YAMLError where it is none or repeats a key."""
    return yaml.load(text, Loader=_Loader)


def parse_override(text):
    """("a.b.c", value) of "a.b.c=value"; ConfigError where it has not that form."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {text!r}: expected section.key=value, for example sampling.steps=20")
    try:
        return key, parse_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text!r}: the value is not valid YAML ({error}); quote it") from error


def set_value(mapping, key, value):
    """Sets "a.b.c" in nested mappings; sections on the way that are missing are made (and checked when read)."""
    *sections, last = key.split(".")
    for i, name in enumerate(sections):
        if mapping.get(name) is None:
            mapping[name] = {}
        mapping = mapping[name]
        if not isinstance(mapping, dict):
            raise ConfigError(f"--set {key}: {'.'.join(sections[:i + 1])} is {_describe(mapping)}, not a section")
    mapping[last] = value


def read_section(cls, mapping, path=""):
    """Instance of the dataclass `cls` from a mapping; `path` is the section's name in error messages.

    A field's annotation is its type: bool, int, float (whole numbers are accepted), str, tuple, dict (of anything),
    Literal, a dataclass (a nested section), and any of them with None. ValueErrors of __post_init__ become problems of
    that section.

    Raises:
        ConfigError: listing every unknown and missing key and every value of the wrong type.
    """
    problems = []
    section = _read(cls, mapping, path, problems, cls)
    if problems:
        raise ConfigError("\n".join(problems))
    return section


def _read(cls, mapping, path, problems, root):
    if not isinstance(mapping, dict):
        problems.append(f"{path}: must be a section with the keys {', '.join(_keys(cls))}, not {_describe(mapping)}")
        return None
    before = len(problems)
    for key in mapping:
        if key not in _keys(cls):
            problems.append(_unknown_key(key, path, cls, root))
    hints = typing.get_type_hints(cls)
    values = {}
    for field in _fields(cls):
        where = _join(path, field.name)
        if field.name in mapping:
            values[field.name] = _convert(hints[field.name], mapping[field.name], where, problems, root)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
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


def _convert(hint, value, where, problems, root):
    options = _options(hint)
    if value is None and type(None) in options:
        return None
    for option in options:
        if dataclasses.is_dataclass(option):
            return _read(option, value, where, problems, root)
        if typing.get_origin(option) is Literal:
            if any(value == v and type(value) is type(v) for v in typing.get_args(option)):
                return value
        elif option is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        elif option is tuple:
            if isinstance(value, list | tuple):
                return tuple(value)
        elif type(value) is option:
            return value
    problems.append(f"{where}: {_describe(value)} is not {' or '.join(map(_describe_type, options))}")
    return None


def _options(hint):
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _describe_type(option):
    if typing.get_origin(option) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(option)))
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", tuple: "a list",
             dict: "a section", type(None): "null"}
    return names[option]


def _describe(value):
    if isinstance(value, dict):
        return f"a section ({', '.join(map(str, value))})"
    names = {str: "the text ", bool: "the truth value ", int: "the number ", float: "the number ", list: "the list "}
    return "null" if value is None else f"{names.get(type(value), '')}{value!r}"


def _unknown_key(key, path, cls, root):
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
    return f"{_join(path, key)}: unknown key {key!r} in {section}; {hint}"


def _key_paths(cls, path):
    hints = typing.get_type_hints(cls)
    for key in _keys(cls):
        yield _join(path, key)
        for option in _options(hints[key]):
            if dataclasses.is_dataclass(option):
                yield from _key_paths(option, _join(path, key))


def _fields(cls):
    return [field for field in dataclasses.fields(cls) if field.init]


def _keys(cls):
    return [field.name for field in _fields(cls)]


def _join(path, key):
    return f"{path}.{key}" if path else str(key)


def _check_run_mode(cls, mapping, path):
    hint = typing.get_type_hints(cls).get("run_mode")
    given = mapping.get("run_mode")
    if hint and given is not None and given not in typing.get_args(hint):
        raise ConfigError(f"{path} is for run_mode {given!r}; this command runs {_describe_type(hint)}")


def require(condition, message):
    """Raises ValueError(message) unless the condition holds; for the checks of a section's __post_init__."""
    if not condition:
        raise ValueError(message)


def require_at_least(section, lowest, *names):
    """ValueError naming the first of a section's fields that is below `lowest`; None is none."""
    for name in names:
        value = getattr(section, name)
        require(value is None or value >= lowest, f"{name} is {value}; it must be at least {lowest}")


def require_above_0(section, *names):
    """ValueError naming the first of a section's fields that is not above 0."""
    for name in names:
        value = getattr(section, name)
        require(value > 0, f"{name} is {value}; it must be above 0")


def nearest(value, step, offset=0, lowest=None):
    """Text that names the valid values k*step + offset around `value`, at least `lowest`."""
    lowest = step + offset if lowest is None else lowest
    below = (value - offset) // step * step + offset
    valid = sorted({max(below, lowest), max(below + step, lowest)})
    return " and ".join(map(str, valid))
