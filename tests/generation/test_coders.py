"""Encoders and decoder around the transformer, with random weights, against their networks."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ospnext_ms.build import build_text_encoder, build_vae
from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import read_section
from ospnext_ms.data.text import Tokenizer, pad_text
from ospnext_ms.generation.coders import ClipEncoder, FrameDecoder, TextEncoder, to_uint8
from ospnext_ms.runtime import Runtime
from ospnext_ms.storage.weights import save_weights
from tests.support import generate_runs as runs
from tests.support.compare import relative_error

RUNTIME = Runtime("CPU", ms.float32, False)
TEXTS = ["a 3 moving left", "", "a bright 7", "two"]


@pytest.fixture
def mapping(model_files):
    return runs.settings(model_files)


@pytest.fixture
def model(mapping):
    """ModelSection of the random model."""
    return read_section(GenerateConfig, mapping).model


@pytest.fixture
def latent():
    return np.random.default_rng(0).standard_normal((16, 3, 4, 6), dtype=np.float32)


def test_clips_are_scaled_and_encoded(model):
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    video = (frames / 127.5 - 1).astype(np.float32).transpose(3, 0, 1, 2)[None]
    expected = build_vae(model.vae, False).encode(Tensor(video)).asnumpy()[0]
    assert relative_error(ClipEncoder(model.vae, RUNTIME)(frames), expected) < 1e-6


def test_latents_are_decoded_and_cut(model, latent):
    decode = FrameDecoder(model.vae, False)
    frames = decode(latent)
    expected = build_vae(model.vae, False).decode(Tensor(latent[None])).asnumpy()[0]
    assert frames.shape == (9, 32, 48, 3)
    assert (frames == to_uint8(expected)).all()
    assert (decode(latent, frames=5) == frames[:5]).all()


def test_tiles_are_decoded_by_whoever_is_asked(mapping, latent):
    mapping["model"]["vae"] |= {"tile_size": 32, "tile_overlap": 8}
    section, asked = read_section(GenerateConfig, mapping).model.vae, []

    def map_tiles(function, tiles):
        for tile in tiles:
            asked.append(tile.shape)
            yield function(tile)

    frames = FrameDecoder(section, False, map_tiles)(latent)
    assert asked == [(1, 16, 3, 4, 4)] * 2
    assert (frames == FrameDecoder(section, False)(latent)).all()


def test_texts_are_encoded_one_by_one_or_together(model):
    width = model.dit.text_len
    ids, mask = Tokenizer(model.text_encoder.tokenizer, width)(TEXTS)
    expected = build_text_encoder(model.text_encoder, RUNTIME)(Tensor(ids), Tensor(mask)).asnumpy()
    for batch in (1, 3, 8):
        rows = TextEncoder(model.text_encoder, width, RUNTIME, batch)(TEXTS)
        assert [len(embedding) for embedding in rows] == mask.sum(1).tolist()
        for i, embedding in enumerate(rows):
            padded = pad_text(embedding, width)
            assert relative_error(padded, expected[i] * mask[i][:, None]) < 1e-5


def test_values_that_are_not_finite_are_told_with_the_file(model, tmp_path, mapping):
    for name, build in (("vae", lambda: build_vae(model.vae, False)),
                        ("text_encoder", lambda: build_text_encoder(model.text_encoder, RUNTIME))):
        net = build()
        for parameter in net.get_parameters():
            parameter.set_data(Tensor(np.full(parameter.shape, np.nan, np.float32)))
        save_weights(net, tmp_path / f"{name}.safetensors")
        mapping["model"][name]["checkpoint"] = str(tmp_path / f"{name}.safetensors")
    damaged = read_section(GenerateConfig, mapping).model
    with pytest.raises(FloatingPointError, match=r"vae\.safetensors gives latents that are not finite"):
        ClipEncoder(damaged.vae, RUNTIME)(np.zeros((1, 32, 48, 3), np.uint8))
    with pytest.raises(FloatingPointError, match=r"text_encoder\.safetensors gives values that are not finite"):
        TextEncoder(damaged.text_encoder, 12, RUNTIME)(TEXTS)


def test_to_uint8():
    video = np.array([-1.5, -1, 0, 1, 3], np.float32).reshape(1, 5, 1, 1).repeat(3, axis=0)
    assert to_uint8(video)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(np.zeros((3, 5, 4, 6), np.float32)).shape == (5, 4, 6, 3)
