"""The shipped configurations load, and what cannot be run is refused with what would be valid."""

import pytest

from ospnext_ms.config.post_train import PostTrainConfig
from ospnext_ms.config.reader import ConfigError, load_config
from ospnext_ms.config.yaml_files import read_values
from ospnext_ms.generation.prompts import read_prompts
from ospnext_ms.parallel.degrees import check_parallel
from tests.support.paths import CONFIGS

FOLDER = CONFIGS / "post_train"
SHIPPED = sorted(FOLDER.glob("*.yaml"))


def test_three_are_shipped():
    assert {path.stem for path in SHIPPED} >= {"tiny", "1_3b", "14b"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_load(path):
    config = load_config(PostTrainConfig, path)
    parallel = config.parallel_config
    check_parallel(parallel, config.model.dit, parallel.skiparse_parallel * parallel.ulysses_parallel)
    assert path.name in path.read_text(encoding="utf-8").split("run_mode")[0], "the head comment gives the command"


@pytest.mark.parametrize("name", ["tiny", "1_3b", "14b"])
def test_models_are_those_of_generate(name):
    ours, theirs = (read_values(folder / f"{name}.yaml")[0] for folder in (FOLDER, FOLDER.parent / "generate"))
    assert ours["model"] == theirs["model"]
    assert ours["video"] == theirs["video"]
    assert ours["sampling"]["negative_prompt"] == theirs["sampling"]["negative_prompt"]
    assert ours["sampling"]["shift"] == theirs["sampling"]["shift"]


def test_held_out_prompts_are_held_out():
    training, held_out = (read_prompts(FOLDER / f"{name}.txt") for name in ("tiny_prompts", "tiny_held_out_prompts"))
    assert not set(training) & set(held_out)
    assert len(set(held_out)) >= 200


def test_tiny_prompts_can_be_judged():
    pytest.importorskip("sklearn", reason="the judge is scikit-learn's")
    from tools.tiny_family.rewards import wanted

    asked = {wanted(prompt) for prompt in read_prompts(FOLDER / "tiny_held_out_prompts.txt")}
    assert asked == {(digit, move) for digit in range(10) for move in ("left", "right", "up", "down")}


@pytest.mark.parametrize(("override", "message"), [
    ("rollout.window.size=8", "window size is 8; with 2 steps it must be from 1 to 1"),
    ("rollout.group_size=1", "group_size is 1"),
    ("rollout.reward_frames=7", "reward_frames is 7; it must be 4k.1 and at most 8193; nearest valid: 5 and 9"),
    ("rollout.reward_frames=33", "reward_frames is 33; video.frames is 17"),
    ("policy.clip=0", "clip is 0"),
    ("lora.rank=0", "rank is 0"),
    ("policy.kl=0.1", "unknown key 'kl'.*"),
    ("rewards=[]", "rewards is empty"),
    ("rewards=[{name: a, callable: x, weight: 1, arguments: {}}]", "callable is 'x'; expected package.module:name"),
    ("rewards=[{name: a, callable: 'x:y', weight: 0, arguments: {}}]", "all weights are 0"),
    ("rewards=[{name: a, callable: 'x:y', weight: 1, arguments: 3}]", r"rewards\[0\].arguments: the number 3"),
    ("rewards=[{name: a, callable: 'x:y', wieght: 1, arguments: {}}]", "did you mean weight"),
    ("rollout.noise=ddpm", "one of osp, flow_grpo"),
])
def test_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(PostTrainConfig, FOLDER / "tiny.yaml", [override])
