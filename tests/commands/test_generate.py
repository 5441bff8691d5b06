"""Options of `generate`: which keys they stand for."""

import pytest

from ospnext_ms.__main__ import main
from ospnext_ms.commands import generate as command
from ospnext_ms.config.checks import MAX_SEED


@pytest.fixture
def configured(monkeypatch):
    """Function: command line -> the configuration that a run would have."""
    configs = []
    monkeypatch.setattr(command, "generate", lambda config, **options: configs.append(config) or [])

    def run(*arguments):
        status = main(["generate", "--config", "yaml_configs/generate/tiny.yaml", *arguments])
        return status, configs[-1] if configs else None

    return run


def test_options_that_stand_for_keys(configured):
    status, config = configured("--steps", "7", "--guidance", "2.5", "--size", "96x64", "--frames", "9", "--seed", "5",
                                "--output", "there", "--set", "sampling.steps=3")
    assert status == 0
    assert (config.sampling.steps, config.sampling.guidance, config.sampling.seed) == (7, 2.5, 5)
    assert (config.video.width, config.video.height, config.video.frames) == (96, 64, 9)
    assert config.output_dir == "there"


def test_a_drawn_seed_is_told_and_another_each_time(configured, capsys):
    seeds = set()
    for _ in range(3):
        status, config = configured("--seed", "-1")
        assert (status, capsys.readouterr().out) == (0, f"seed {config.sampling.seed}\n")
        assert 0 <= config.sampling.seed <= MAX_SEED
        seeds.add(config.sampling.seed)
    assert len(seeds) > 1


def test_several_processes_would_draw_several_seeds(configured, capsys, monkeypatch):
    monkeypatch.setenv("MS_WORKER_NUM", "2")
    assert configured("--seed", "-1")[0] == 2
    assert "give them all one number" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["--steps", "0"], "steps is 0"), (["--guidance", "nan"], "guidance"), (["--size", "100x64"], "width is 100"),
    (["--frames", "16"], "nearest valid: 13 and 17"), (["--seed", "-2"], "seed is -2"),
])
def test_bounds_are_those_of_the_keys(configured, capsys, arguments, message):
    assert configured(*arguments)[0] == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("size", ["64", "64x", "64x64x3", "big"])
def test_a_size_that_is_none(configured, capsys, size):
    with pytest.raises(SystemExit):
        configured("--size", size)
    assert "WIDTHxHEIGHT" in capsys.readouterr().err
