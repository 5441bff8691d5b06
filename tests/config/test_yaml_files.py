"""YAML as plain values: files that extend others, and all that a text can be instead of a configuration."""

import pytest

from ospnext_ms.config.checks import ConfigError
from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import load_config
from ospnext_ms.config.yaml_files import parse_yaml, read_values
from tests.support.paths import CONFIGS

TINY = CONFIGS / "generate" / "tiny.yaml"


@pytest.fixture
def write(tmp_path):
    """Writes files of a folder, {name: text}, and returns the path of the first."""
    def write(**texts):
        paths = [tmp_path / f"{name}.yaml" for name in texts]
        for path, text in zip(paths, texts.values(), strict=True):
            path.write_text(text)
        return paths[0]

    return write


def test_sections_are_merged_key_by_key_and_lists_as_a_whole(write):
    path = write(
        child="extends: parent.yaml\na: {b: {c: 5}, e: [9]}\ng: {new: 1}\n",
        parent="extends: base.yaml\na: {b: {d: 4}}\n",
        base="a: {b: {c: 1, d: 2}, e: [1, 2], f: kept}\nh: 3\n",
    )
    values, origins = read_values(path)
    assert values == {"a": {"b": {"c": 5, "d": 4}, "e": [9], "f": "kept"}, "g": {"new": 1}, "h": 3}
    assert {key: file.stem for key, file in origins.items()} == {
        "a.b.c": "child", "a.b.d": "parent", "a.e": "child", "a.f": "base", "g.new": "child", "h": "base"}


def test_null_clears(write):
    path = write(child="extends: parent.yaml\na: null\nb: {c: null}\n", parent="a: {x: 1}\nb: {c: {y: 2}, d: 3}\n")
    assert read_values(path)[0] == {"a": None, "b": {"c": None, "d": 3}}


def test_what_was_cleared_can_be_given_anew(write):
    path = write(child="extends: middle.yaml\na: {new: 1}\n", middle="extends: base.yaml\na: null\n",
                 base="a: {x: 1}\n")
    assert read_values(path)[0] == {"a": {"new": 1}}


def test_an_empty_section_changes_nothing(write):
    assert read_values(write(child="extends: parent.yaml\na: {}\nb: {}\n", parent="a: {x: 1}\n"))[0] == {
        "a": {"x": 1}, "b": {}}


def test_the_extended_file_is_relative_to_the_one_that_extends_it(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "base.yaml").write_text("a: 1\n")
    (tmp_path / "runs" / "child.yaml").write_text("extends: ../base.yaml\n")
    monkeypatch.chdir(tmp_path / "runs")
    assert read_values("child.yaml")[0] == {"a": 1}


def test_a_circle_is_named(write):
    path = write(a="extends: b.yaml\n", b="extends: c.yaml\n", c="extends: b.yaml\n")
    with pytest.raises(ConfigError, match=r"a\.yaml -> .*b\.yaml -> .*c\.yaml -> .*b\.yaml$"):
        read_values(path)


def test_a_file_that_extends_itself(write):
    with pytest.raises(ConfigError, match=r"extends goes in a circle: .*a\.yaml -> .*a\.yaml"):
        read_values(write(a="extends: a.yaml\n"))


def test_a_missing_parent_is_named(write):
    with pytest.raises(FileNotFoundError, match=r"no configuration file .*none\.yaml, which .*a\.yaml extends"):
        read_values(write(a="extends: none.yaml\n"))


@pytest.mark.parametrize("value", ["[b.yaml, c.yaml]", "3", "null", "{a: b}"])
def test_one_file_is_extended(write, value):
    with pytest.raises(ConfigError, match="it must be the name of one file"):
        read_values(write(a=f"extends: {value}\n"))


def test_errors_of_the_extended_file_name_it(write):
    path = write(child=f"extends: middle.yaml\noutput_dir: {'x'}\n",
                 middle=f"extends: {TINY}\nsampling: {{stpes: 3, shift: fast}}\nvideo: {{fps: 0}}\n")
    with pytest.raises(ConfigError) as error:
        load_config(GenerateConfig, path, ["context.dtype=fp8"])
    lines = str(error.value).split("\n")
    assert [("middle.yaml)" in line, line.split(":")[0]) for line in lines] == [
        (False, "context.dtype"), (True, "sampling.stpes"), (True, "sampling.shift"), (False, "video")]


def test_values_of_the_command_line_come_last_and_are_its_own(write):
    path = write(child="extends: parent.yaml\nsampling: {steps: 7}\n",
                 parent=f"extends: {TINY}\nsampling: {{steps: 5, shift: 2.0, seed: fast}}\n")
    config = load_config(GenerateConfig, path, ["sampling.seed=1"])
    assert (config.sampling.steps, config.sampling.shift, config.sampling.seed) == (7, 2.0, 1)
    with pytest.raises(ConfigError, match=r"is not a whole number$"):
        load_config(GenerateConfig, path, ["sampling.seed=slow"])


def test_a_section_with_defaults_may_be_cleared(write):
    path = write(child="extends: parent.yaml\nmodel: {dit: {quant: null, quant_config: null}}\ncontext:\n",
                 parent=f"extends: {TINY}\nmodel: {{dit: {{quant: hif8, quant_config: {{backend: emulate}}}}}}\n")
    assert load_config(GenerateConfig, path) == load_config(GenerateConfig, TINY)


@pytest.mark.parametrize(("text", "expected"), [
    ("a: [\n" * 3000, "more than 32 levels inside one another"),
    ("a: " + "[" * 100_000, "more than 32 levels"),
    ("{a: " * 40 + "1" + "}" * 40, "more than 32 levels"),
    ("a: " + "9" * 5000, "a whole number of 5000 characters is too large"),
    ("a: 0x" + "f" * 5000, "too large"),
    ("a: &x {b: 1}\nc:\n  <<: *x\n", r"\*x repeats a section or list"),
    ("a:\n  <<: {b: 1}\n", r"<< merges are not read; use extends: FILE, line 2, column 3"),
    ("a: &x [1, 2]\nb: *x\n", r"\*x repeats a section or list, .* line 2, column 4"),
    ("a: &x [*x]\n", r"\*x repeats"),
    ("a: *nothing\n", "undefined alias"),
    ("a: 2020-99-99\n", "'2020-99-99' is no timestamp"),
    ("a: !!int ''\n", "is no int"),
    ("a: !!bool maybe\n", "is no bool"),
    ("a: !!python/object:os.system {}\n", "could not determine a constructor"),
    ("a: 1\na: 2\n", "the key 'a' is given twice, line 2, column 1"),
    ("a: {b: 1, b: 2}\n", "the key 'b' is given twice, line 1, column 11"),
    ("a: [1\n", "expected ',' or ']'.*line 2, column 1"),
    ("a: 1\n---\nb: 2\n", "expected a single document"),
    ("a: \x00\n", "special characters are not allowed"),
    ("? {a: b}\n: c\n", "unhashable key"),
    ("- 1\n", "must hold sections"), ("", "must hold sections"), ("text", "must hold sections"),
])
def test_texts_that_are_no_configuration_are_told_in_a_line(write, text, expected):
    with pytest.raises(ConfigError, match=expected) as error:
        read_values(write(run=text))
    assert "\n" not in str(error.value)
    assert "run.yaml" in str(error.value)
    assert len(str(error.value)) < 500


def test_a_single_value_may_be_repeated_and_numbers_are_read_as_written():
    assert parse_yaml("a: &x 1e-4\nb: *x\nc: .5e+3\nd: 1:30\n", "x") == {"a": 1e-4, "b": 1e-4, "c": 500.0, "d": 90}
