"""Configurations of runs as plain values, changed a section at a time, and through YAML files."""

from pathlib import Path

import yaml

from ospnext_ms.config.reader import load_config


def changed(values, **sections):
    """`values` with other sections: keys of a mapping are merged with those there, anything else takes their place."""
    changes = {name: values[name] | section if isinstance(section, dict) and isinstance(values.get(name), dict)
               else section for name, section in sections.items()}
    return values | changes


def write_config(path, values):
    """Writes plain values as a YAML file and returns its path."""
    Path(path).write_text(yaml.safe_dump(values))
    return Path(path)


def read_config(kind, path, values, *overrides):
    """The configuration of class `kind` of plain values, through a YAML file."""
    return load_config(kind, write_config(path, values), overrides)
