"""Configuration: every kind of mistake is an error that names its place and what would be valid."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest
import yaml

from ospnext_ms.config.generate import GenerateConfig, PromptsSection, SamplingSection
from ospnext_ms.config.reader import ConfigError, load_config, read_section
from ospnext_ms.config.sections import VAESection, VideoSection
from tests.support.paths import CONFIGS


@pytest.fixture
def mapping():
    """The tiny configuration as plain values, to be spoilt."""
    return yaml.safe_load((CONFIGS / "generate" / "tiny.yaml").read_text())


def load_tiny(*overrides, values=None):
    return load_config(GenerateConfig, CONFIGS / "generate" / "tiny.yaml", overrides, values)


@pytest.mark.parametrize(("name", "shape"), [
    ("tiny", (16, 5, 16, 16)), ("1_3b", (16, 21, 60, 104)), ("14b", (16, 21, 90, 160)),
])
def test_shipped_files_are_valid(name, shape):
    config = load_config(GenerateConfig, CONFIGS / "generate" / f"{name}.yaml", values={"prompts.prompt": "a cat"})
    assert config.latent_shape == shape


@pytest.mark.parametrize(("override", "expected"), [
    ("sampling.stpes=3", r"sampling\.stpes: unknown key 'stpes' in section sampling; did you mean steps\?"),
    ("steps=3", r"steps: unknown key 'steps' in the top level; did you mean sampling\.steps\?"),
    ("modle.dit.dim=3", r"modle: unknown key 'modle' in the top level; did you mean model\?"),
    ("model.dit.zzz=1", r"unknown key 'zzz' in section model\.dit; valid keys: dim, ffn_dim"),
    ("sampling.steps=ten", r"sampling\.steps: the text 'ten' is not a whole number"),
    ("sampling.steps=2.5", r"sampling\.steps: the number 2\.5 is not a whole number"),
    ("sampling.steps=true", r"sampling\.steps: the truth value True is not a whole number"),
    ("sampling.shift=true", r"sampling\.shift: the truth value True is not a number"),
    ("sampling.sampler=ddim", r"sampling\.sampler: the text 'ddim' is not one of euler, unipc, dpm\+\+"),
    ("sampling.negative_prompt=", r"sampling\.negative_prompt: null is not a text"),
    ("prompts.prompt='a: b'", None),
    ("prompts.prompt={a: b}", r"prompts\.prompt: a section \(a\) is not a text or null"),
    ("video=3", r"video: must be a section with the keys height, .*, not the number 3"),
    ("sampling.steps.x=3", r"sampling\.steps is the number 20, not a section"),
    ("sampling.steps", r"expected section\.key=value"),
    ("=3", r"expected section\.key=value"),
    ("sampling..steps=3", r"expected section\.key=value"),
    ("sampling.steps=[1", r"not valid YAML"),
    ("model.dit.num_full_blocks=3", r"model\.dit: dit\.num_full_blocks is 3; .* valid values are \[0, 4\]"),
    ("model.text_encoder.dim=32", r"text_encoder\.dim is 32 but dit\.text_dim is 64"),
    ("model.vae.z_dim=4", r"vae\.z_dim 4, dit\.in_channels 16"),
    ("model.dit.text_len=0", r"dit\.text_len is 0"),
    ("model.dit.patch_size=[1, 2]", r"model\.dit\.patch_size: the list \[1, 2\] has 2 entries; it must have 3"),
    ("model.dit.patch_size=[1, 2, x]", r"model\.dit\.patch_size\[2\]: the text 'x' is not a whole number"),
    ("model.dit.patch_size=[1, 0, 2]", r"patch_size is \(1, 0, 2\)"),
    ("run_mode=train", r"is for run_mode 'train'; this command runs one of generate"),
])
def test_wrong_overrides(override, expected):
    if expected is None:
        load_tiny(override)
    else:
        with pytest.raises(ConfigError, match=expected):
            load_tiny(override)


@pytest.mark.parametrize(("override", "expected"), [
    ("video.frames=16", "nearest valid: 13 and 17"),
    ("video.frames=0", "nearest valid: 1"),
    ("video.frames=1000001", "at most 8193; nearest valid: 8193$"),
    ("video.width=1048576", "at most 16384; nearest valid: 16384$"),
    ("video.frames=-7", "nearest valid: 1$"),
    ("video.height=500", r"video\.height is 500; it must be a multiple of 16 .*; nearest valid: 496 and 512"),
    ("video.width=0", "nearest valid: 16"),
    ("video.width=7", "nearest valid: 16$"),
    ("video.fps=0", "at least 1"),
    ("video.crf=52", "from 1"), ("video.crf=0", "from 1"),
    ("sampling.steps=0", "sampling: steps is 0; it must be at least 1"),
    ("sampling.shift=0", "above 0"),
    ("sampling.shift=.nan", "sampling.shift: the number nan is not finite"),
    ("sampling.shift=-.inf", "is not between"),
    ("sampling.shift=1e400", "the number inf is not between"),
    ("sampling.steps=10000000000000000000", "is not between"),
    ("sampling.shift=10000000000000000000", "is not between"),
    ("sampling.shift=2000", "at most 1000"),
    ("sampling.guidance=0.5", "at least 1"),
    ("sampling.guidance=.inf", "is not between"),
    ("sampling.seed=-1", "from 0 to 4294967295"),
    ("sampling.seed=4294967296", "from 0 to 4294967295"),
    ("sampling.batch_size=0", "at least 1"),
    ("prompts.samples_per_prompt=0", "at least 1"),
    ("prompts.prompt_file=p.txt", "not both"),
    ("prompts.prompt=null", "not neither"),
    ("model.vae.tile_size=64", "together"),
    ("output_dir=''", "output_dir: the text '' is empty; give one"),
    ("model.vae.checkpoint=' '", "model.vae.checkpoint: the text ' ' is empty"),
    ("adapter=''", "adapter: the text '' is empty"),
])
def test_values_that_cannot_run(override, expected):
    with pytest.raises(ConfigError, match=expected):
        load_tiny(override)


@pytest.mark.parametrize(("size", "overlap", "expected"), [
    (60, 8, "tile_size is 60.*56 and 64"), (64, 64, "from 0 to 56; nearest valid: 56$"),
    (64, 12, "nearest valid: 8 and 16"),
    (64, 16, None),
])
def test_tiles(size, overlap, expected):
    values = {"dim": 12, "checkpoint": "x", "tile_size": size, "tile_overlap": overlap}
    if expected is None:
        assert read_section(VAESection, values).tile_overlap == 16
    else:
        with pytest.raises(ConfigError, match=expected):
            read_section(VAESection, values)


def test_overrides_are_applied_in_order_and_option_values_last():
    config = load_tiny("sampling.steps=7", "sampling.steps=9", "sampling.shift=1e-1", "context.dtype=fp32",
                       values={"prompts.prompt": "no: yes", "sampling.seed": 5})
    assert config.sampling.steps == 9
    assert config.sampling.shift == 0.1
    assert config.context.dtype == "fp32"
    assert config.prompts.prompt == "no: yes"
    assert config.sampling.seed == 5


def test_an_old_name_is_still_read_with_a_line_that_says_so(capsys):
    assert load_tiny("sampling.latents=noise.npy").sampling.starting_noise == "noise.npy"
    assert capsys.readouterr().err == ("sampling.latents is called sampling.starting_noise now; the old name is still "
                                       "read\n")
    assert load_tiny("sampling.starting_noise=noise.npy").sampling.starting_noise == "noise.npy"
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match="sampling.latents: this is the old name of starting_noise"):
        load_tiny("sampling.latents=a.npy", "sampling.starting_noise=b.npy")


def test_whole_numbers_become_floats():
    shift = load_tiny("sampling.shift=5").sampling.shift
    assert shift == 5
    assert isinstance(shift, float)


def test_every_missing_key_is_listed(mapping):
    del mapping["sampling"]["steps"], mapping["model"]["vae"]["checkpoint"], mapping["output_dir"]
    with pytest.raises(ConfigError) as error:
        read_section(GenerateConfig, mapping)
    assert str(error.value).split("\n") == [
        "model.vae.checkpoint: missing; it must be given",
        "sampling.steps: missing; it must be given",
        "output_dir: missing; it must be given",
    ]


def test_all_problems_are_reported_at_once(mapping):
    mapping["sampling"] |= {"steps": 0, "seed": 0}
    mapping["video"]["frame"] = 3
    mapping["model"]["dit"]["dim"] = "wide"
    with pytest.raises(ConfigError) as error:
        read_section(GenerateConfig, mapping)
    assert [line.split(":")[0] for line in str(error.value).split("\n")] == ["model.dit.dim", "sampling", "video.frame"]


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(GenerateConfig, path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no configuration file .*run\.yaml"):
        load_config(GenerateConfig, tmp_path / "run.yaml")


def test_a_section_left_empty(mapping):
    mapping["video"] = None
    with pytest.raises(ConfigError, match="video: must be a section with the keys height.*, not null"):
        read_section(GenerateConfig, mapping)


@dataclass(frozen=True)
class Inner:
    rate: float
    sizes: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Outer:
    kind: Literal["a", "b"]
    inner: Inner | None = None
    limit: int | float | None = None


def test_the_reader_serves_any_dataclass():
    assert read_section(Outer, {"kind": "b", "inner": None}) == Outer("b")
    outer = read_section(Outer, {"kind": "a", "inner": {"rate": 1, "sizes": [2, 3]}, "limit": 3})
    assert outer == Outer("a", Inner(1.0, (2, 3)), 3)
    with pytest.raises(ConfigError, match=r"run\.inner\.rate: missing"):
        read_section(Outer, {"kind": "a", "inner": {}}, "run")
    with pytest.raises(ConfigError, match=r"run\.inner\.sizes: the number 3 is not a list"):
        read_section(Outer, {"kind": "a", "inner": {"rate": 1, "sizes": 3}}, "run")
    with pytest.raises(ConfigError, match=r"run\.inner\.sizes\[1\]: the text 'x' is not a whole number"):
        read_section(Outer, {"kind": "a", "inner": {"rate": 1, "sizes": [3, "x"]}}, "run")


@pytest.mark.parametrize("section", [SamplingSection, VideoSection, PromptsSection, GenerateConfig])
def test_sections_cannot_be_changed(section):
    assert section.__dataclass_params__.frozen


def test_the_resolved_configuration_can_be_stored_and_read_again():
    config = load_tiny()
    assert read_section(GenerateConfig, dataclasses.asdict(config)) == config
