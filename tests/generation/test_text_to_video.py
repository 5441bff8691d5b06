"""The pipeline, with random weights, against the networks called one by one."""


import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.graph.api import ms_compile_cache

from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import read_section
from ospnext_ms.data.text import Tokenizer
from ospnext_ms.diffusion.integrate import guided, integrate
from ospnext_ms.diffusion.sampler import make_sampler
from ospnext_ms.generation import text_to_video
from ospnext_ms.generation.jobs import plain_jobs
from ospnext_ms.generation.noise import starting_noise
from ospnext_ms.generation.text_to_video import TextToVideo
from ospnext_ms.models.dit import OSPNextDiT
from ospnext_ms.models.umt5 import UMT5Encoder
from ospnext_ms.models.vae import WanVAE
from ospnext_ms.runtime import start
from ospnext_ms.storage.weights import load_weights, save_weights
from tests.support import generate_runs as runs
from tests.support.compare import relative_error


def pipeline(config, prompts, noise=None):
    return TextToVideo(config, start(config.context), plain_jobs(config.sampling, prompts), noise)


def make_videos(config, prompts, latents=None):
    """Frames [F, H, W, 3] of each prompt, and the timings of the last."""
    frames, timings = [], None
    for video in pipeline(config, prompts, latents).videos():
        frames.append(video.frames)
        timings = video.timings
    return frames, timings


def make_latents(config, prompts, latents=None):
    return np.stack([latent for _, latent in pipeline(config, prompts, latents).latents()])


def load(cell, section):
    load_weights(cell, section.checkpoint)
    return cell


def by_hand(config, prompt, index):
    """Latent and frames of one prompt, written out with the networks alone."""
    model, sampling = config.model, config.sampling
    encoder = load(UMT5Encoder(model.text_encoder), model.text_encoder)
    dit, vae = load(OSPNextDiT(model.dit), model.dit), load(WanVAE(model.vae), model.vae)
    ids, mask = Tokenizer(model.text_encoder.tokenizer, model.dit.text_len)([prompt, sampling.negative_prompt])
    assert 0 < mask[0].sum() < model.dit.text_len
    text = encoder(Tensor(ids), Tensor(mask)).asnumpy() * mask[..., None]
    x = starting_noise(config.latent_shape, sampling.seed, index)[None]
    sigmas = np.linspace(1, 0, sampling.steps + 1)
    sigmas = sampling.shift * sigmas / (1 + (sampling.shift - 1) * sigmas)
    for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
        t = Tensor([1000 * sigma], ms.float32)
        cond, uncond = (dit(Tensor(x), t, Tensor(text[i : i + 1], ms.float32)).asnumpy() for i in range(2))
        x = x + (uncond + sampling.guidance * (cond - uncond)) * np.float32(sigma_next - sigma)
    video = vae.decode(Tensor(x)).asnumpy()[0]
    return x[0], np.clip(np.round((video.transpose(1, 2, 3, 0) + 1) * 127.5), 0, 255)


PROMPTS = ["a 3 moving left", "a bright 7"]
TIMINGS = {"loading_text_encoder", "text_encoding", "loading_dit", "denoising", "loading_vae", "decoding"}


@pytest.fixture(scope="module")
def made(model_files):
    """What the configuration as it stands makes of PROMPTS: (latents, frames, timings)."""
    config = read_section(GenerateConfig, runs.settings(model_files))
    return make_latents(config, PROMPTS), *make_videos(config, PROMPTS)


@pytest.mark.parametrize("index", [0, 1])
def test_the_pipeline_is_its_networks_in_a_row(configure, made, index):
    latents, frames, _ = made
    latent, expected = by_hand(configure(), PROMPTS[index], index)
    assert relative_error(latents[index], latent) < 1e-5
    assert frames[index].shape == expected.shape == (5, 32, 48, 3)
    assert frames[index].dtype == np.uint8
    # A difference of 1e-6 may fall on the border of two levels.
    assert np.abs(frames[index] - expected).max() <= 1


def test_timings_of_all_stages(made):
    assert set(made[2]) == TIMINGS
    assert all(seconds > 0 for seconds in made[2].values())


def test_noise_and_result_do_not_depend_on_the_batch(configure, made):
    assert relative_error(make_latents(configure(sampling={"batch_size": 2}), PROMPTS), made[0]) < 1e-5
    assert relative_error(made[0][1], made[0][0]) > 0.1


def test_another_seed_makes_another_video(configure, made):
    assert relative_error(make_latents(configure(sampling={"seed": 8}), PROMPTS[:1])[0], made[0][0]) > 0.1


@pytest.mark.parametrize(("prompt", "sampling"), [
    (PROMPTS[1], {}), (PROMPTS[0], {"negative_prompt": "blue"}), (PROMPTS[0], {"guidance": 1.0}),
    (PROMPTS[0], {"sampler": "unipc"}),
])
def test_prompt_guidance_and_sampler_matter(configure, made, prompt, sampling):
    assert relative_error(make_latents(configure(sampling=sampling), [prompt])[0], made[0][0]) > 1e-4


def test_given_latents_replace_the_noise(configure, made):
    latents = starting_noise((16, 2, 4, 6), 7, 0)[None].astype(np.float64)
    given = make_latents(configure(sampling={"seed": 99}), PROMPTS[:1], latents)
    assert (given[0] == made[0][0]).all()


def test_graphs_give_the_video_of_pynative(configure, made):
    config = configure(context={"mode": "graph"})
    assert relative_error(make_latents(config, PROMPTS[:1])[0], made[0][0]) < 1e-5


@pytest.mark.slow
def test_compiled_decoding_gives_the_video_of_pynative(configure, made, monkeypatch):
    monkeypatch.setattr(text_to_video, "COMPILE_VAE_FROM", 0)
    frames, _ = make_videos(configure(context={"mode": "graph"}), PROMPTS[:1])
    assert np.abs(frames[0].astype(int) - made[1][0]).max() <= 1


def test_a_tile_larger_than_the_video_changes_nothing(configure, mapping, made):
    mapping["model"]["vae"] |= {"tile_size": 48, "tile_overlap": 16}
    frames, _ = make_videos(configure(sampling={"guidance": 3.0}), PROMPTS[:1])
    assert (frames[0] == made[1][0]).all()


def test_nothing_is_compiled_from_step_to_step(configure):
    config = configure()
    net = load(OSPNextDiT(config.model.dit), config.model.dit)
    text = Tensor(np.zeros((1, 12, 16), np.float32))
    velocity = guided(ms.jit(net), text, text + 1, 2.0)
    sample = Tensor(starting_noise((1, *config.latent_shape), 0, 0))
    integrate(velocity, make_sampler("euler", 1, 3.0), sample)
    compiled = len(ms_compile_cache)
    assert compiled > 0
    integrate(velocity, make_sampler("euler", 3, 3.0), sample)
    assert len(ms_compile_cache) == compiled


def test_a_checkpoint_of_another_shape_is_found_before_anything_runs(configure, mapping):
    mapping["model"]["vae"]["dim"] = 8
    with pytest.raises(ValueError, match=r"model\.vae: .* does not fit the configured shape:\nmisshapen"):
        pipeline(configure(), PROMPTS)


def test_a_tokenizer_of_another_vocabulary(configure, mapping):
    mapping["model"]["text_encoder"]["vocab_size"] = 20
    with pytest.raises(ValueError, match=r"gives the id \d+, but text_encoder.vocab_size is 20"):
        pipeline(configure(), PROMPTS)


def test_values_that_are_not_finite_are_an_error(configure, mapping, tmp_path):
    config = configure()
    net = load(OSPNextDiT(config.model.dit), config.model.dit)
    net.head.head.bias.set_data(Tensor(np.full(net.head.head.bias.shape, np.nan, np.float32)))
    save_weights(net, tmp_path / "nan.safetensors")
    mapping["model"]["dit"]["checkpoint"] = str(tmp_path / "nan.safetensors")
    with pytest.raises(FloatingPointError, match="latents of video_0000 are not finite"):
        make_latents(configure(), PROMPTS[:1])
