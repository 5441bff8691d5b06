"""The draws of a step depend on seed, step and sample alone."""

import numpy as np
import pytest

from ospnext_ms.config.train import FlowSection
from ospnext_ms.data.latents import LatentDataset
from ospnext_ms.diffusion.flow import dynamic_shift, training_sigmas
from ospnext_ms.parallel.mesh import Mesh
from ospnext_ms.training.inputs import RandomSource, StepInputs, flow_shift, open_source, unshifted_sigma
from tests.support import train_runs as runs


def mesh_of(rank, size):
    """The mesh of a rank in pure data parallelism; it has no groups, which inputs do not need."""
    return Mesh(rank=rank, size=size)


@pytest.fixture
def config(tmp_path):
    values = runs.settings(tmp_path / "run", runs.write_cache(tmp_path / "data"))
    values["runner_config"] |= {"batch_size": 2, "gradient_accumulation_steps": 2}
    return values, tmp_path / "config.yaml"


def inputs_of(config, *overrides, rank=0, size=1):
    values, path = config
    read = runs.read_config(path, values, *overrides)
    mesh = mesh_of(rank, size)
    return StepInputs(read, open_source(read, mesh), mesh)


def test_they_are_the_same_again_and_ahead_of_time(config):
    inputs = inputs_of(config)
    for step, made_ahead in zip(range(3, 6), inputs_of(config).ahead(3, 6), strict=True):
        for batch, other in zip(inputs(step), made_ahead, strict=True):
            for array, same in zip(batch, other, strict=True):
                np.testing.assert_array_equal(array, same)


def test_two_processes_draw_what_one_draws(config):
    whole = list(inputs_of(config, "runner_config.batch_size=4")(5))
    parts = [inputs_of(config, rank=rank, size=2)(5) for rank in range(2)]
    assert [len(batch[0]) for batch in whole] == [4, 4]
    for i in range(4):
        together = np.concatenate([batch[i] for batch in whole])
        np.testing.assert_array_equal(together, np.concatenate([b[i] for part in parts for b in part]))


@pytest.mark.parametrize("override", ["seed=4"])
def test_seed_and_step_change_noise_and_levels(config, override):
    x0, noise, sigma, _ = inputs_of(config)(0)[0]
    for other in (inputs_of(config)(1)[0], inputs_of(config, override)(0)[0]):
        assert not np.array_equal(other[1], noise)
        assert not np.array_equal(other[2], sigma)
    assert not np.array_equal(noise[0], noise[1])
    assert x0.shape == noise.shape == (2, *runs.LATENT)


def test_a_share_of_the_prompts_is_the_empty_text(config):
    inputs = inputs_of(config)
    empty = LatentDataset(inputs.config.train_dataset.path, batch_size=1, seed=0,
                          text_len=runs.DIT["text_len"]).empty_text
    texts = [text for step in range(60) for batch in inputs(step) for text in batch[3]]
    dropped = np.mean([np.array_equal(text, empty) for text in texts])
    assert abs(dropped - 0.3) < 4 * np.sqrt(0.3 * 0.7 / len(texts))


def test_levels_are_logit_normal_and_shifted(config):
    inputs = inputs_of(config, "train_dataset.kind=random", "train_dataset.path=null",
                       "train_dataset.latent_size=[1,2,2]", "runner_config.batch_size=500")
    sigma = np.concatenate([batch[2] for step in range(4) for batch in inputs(step)])
    unshifted = sigma / (3 - 2 * sigma)
    logit = np.log(unshifted / (1 - unshifted))
    assert abs(logit.mean()) < 4 / np.sqrt(len(logit))
    assert abs(logit.std() - 1) < 4 / np.sqrt(2 * len(logit))


def test_the_dynamic_shift_counts_the_tokens_of_one_frame():
    assert flow_shift(FlowSection(shift="dynamic"), (90, 160), (1, 2, 2)) == dynamic_shift(45 * 80)
    assert flow_shift(FlowSection(shift=2.5), (90, 160), (1, 2, 2)) == 2.5
    section = FlowSection(shift=1.0, logit_mean=0.5, logit_std=2.0)
    assert training_sigmas(unshifted_sigma(section, 1.0), 1.0) == pytest.approx(1 / (1 + np.exp(-2.5)))


def test_random_data_says_so(config):
    inputs = inputs_of(config, "train_dataset.kind=random", "train_dataset.path=null",
                       "train_dataset.latent_size=[2,8,8]")
    assert isinstance(inputs.source, RandomSource)
    assert "RANDOM DATA" in inputs.source.note


def test_a_cache_of_other_texts_is_refused(config):
    with pytest.raises(ValueError, match="dit.text_dim is 4"):
        inputs_of(config, "model.dit.text_dim=4")
