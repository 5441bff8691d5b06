"""What every file of yaml_configs means, against golden/resolved_configurations.json.

After a change that is meant: `python -m tests.config.test_shipped_files` writes the table anew; its difference is what
the change does to users.
"""

import copy
import dataclasses
import datetime
import json
import math
import re

import pytest

from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.post_train import PostTrainConfig
from ospnext_ms.config.prepare_data import PrepareDataConfig
from ospnext_ms.config.reader import ConfigError, load_config, read_section
from ospnext_ms.config.train import TrainConfig
from ospnext_ms.config.yaml_files import EXTENDS, parse_yaml, read_values, set_value
from tests.support.paths import CONFIGS, GOLDEN

CLASSES = {"generate": GenerateConfig, "train": TrainConfig, "post_train": PostTrainConfig,
           "prepare_data": PrepareDataConfig}
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("*/*.yaml"))
TABLE = GOLDEN / "resolved_configurations.json"


def resolved(name):
    """{key: value as JSON} of a file; those of `generate` get the prompt that they leave to the command line."""
    folder = name.split("/")[0]
    prompt = {"prompts.prompt": "a cat"} if folder == "generate" and "tiny" not in name else {}
    values = dataclasses.asdict(load_config(CLASSES[folder], CONFIGS / name, values=prompt))
    return {key: json.dumps(value, ensure_ascii=False) for key, value in sorted(leaves("", values))}


def leaves(key, value):
    """(dotted key, value) of all that is no section."""
    if isinstance(value, tuple) and any(isinstance(entry, dict) for entry in value):
        value = dict(enumerate(value))
    if isinstance(value, dict) and value:
        for name, entry in value.items():
            yield from leaves(f"{key}.{name}" if key else name, entry)
    else:
        yield key, value


def golden():
    """{file: {key: value as JSON}}."""
    return {name: {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
            for name, values in json.loads(TABLE.read_text(encoding="utf-8")).items()}


def write_table():
    """Makes what the files mean now the table."""
    files = {name: ",\n".join(f"  {json.dumps(key)}: {value}" for key, value in resolved(name).items())
             for name in FILES}
    text = ",\n".join(f" {json.dumps(name)}: {{\n{lines}\n }}" for name, lines in files.items())
    TABLE.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


def test_every_file_is_in_the_table():
    assert sorted(golden()) == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_file_means_what_it_meant(name):
    assert resolved(name) == golden()[name]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_extends_another_holds_what_differs(name):
    path = CONFIGS / name
    text = path.read_text(encoding="utf-8")
    own = parse_yaml(text, name)
    if EXTENDS not in own:
        return
    extended = dict(leaves("", read_values(path.parent / own.pop(EXTENDS))[0]))
    assert [key for key, value in leaves("", own) if extended.get(key) == value] == []
    settings = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(settings) <= (15 if name.endswith("_hif8.yaml") else 30)


@pytest.mark.parametrize("name", FILES)
def test_the_head_says_the_command(name):
    head = (CONFIGS / name).read_text(encoding="utf-8").split("\n\n")[0]
    command = name.split("/")[0].replace("_", "-")
    assert re.search(rf"{command} (--config )?yaml_configs/{name}", re.sub(r"\\\n#\s*", "", head))


def section_or_error(section, values):
    try:
        return read_section(section, values)
    except ConfigError as error:
        return error


@pytest.mark.parametrize("folder", CLASSES)
@pytest.mark.parametrize("odd", [-math.inf, math.nan, 10**30, 2**32, -1, [[]], datetime.date(2020, 1, 1)])
def test_an_odd_value_anywhere_is_refused_or_can_be_run(folder, odd):
    values, origins = read_values(CONFIGS / folder / "tiny.yaml")
    for key in origins:
        changed = copy.deepcopy(values)
        set_value(changed, {}, key, odd)
        found = section_or_error(CLASSES[folder], changed)
        assert isinstance(found, CLASSES[folder]) or str(found), key


if __name__ == "__main__":
    write_table()
