"""The PyTorch WanVAE against the original network's numbers, and streaming against the whole video at once."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference networks need PyTorch")

from ospnext_ms.models.config import VAEConfig  # noqa: E402
from tests.support.compare import relative_error  # noqa: E402
from tests.support.paths import FACTS  # noqa: E402
from tools.torch_reference.loading import load  # noqa: E402
from tools.torch_reference.vae import WanVAE  # noqa: E402

TOLERANCE = 1e-5
CHUNKS = (1, 2, None)


@pytest.fixture(scope="module")
def arrays(golden):
    with np.load(golden / "vae_9_frames.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(params=CHUNKS, ids=lambda chunk: f"latents_per_chunk={chunk}")
def vae(request, golden):
    return load(WanVAE(VAEConfig(dim=6), latents_per_chunk=request.param), golden / "vae_weights.safetensors")


@torch.no_grad()
def test_encoder_is_the_original(vae, arrays):
    assert relative_error(vae.encode(arrays["video"]), arrays["mu"]) < TOLERANCE
    mu, log_var = vae.encode_moments(arrays["video"])
    assert relative_error(mu, arrays["mu_raw"]) < TOLERANCE
    assert log_var.shape == mu.shape


@torch.no_grad()
@pytest.mark.parametrize("latent", ["z", "mu"])
def test_decoder_is_the_original(vae, arrays, latent):
    raw = vae.decode_raw(arrays[latent] * vae.latent_std + vae.latent_mean)
    assert relative_error(raw, arrays[f"dec_of_{latent}"]) < TOLERANCE
    assert relative_error(vae.decode(arrays[latent]), arrays[f"dec_of_{latent}_clamped"]) < TOLERANCE


def test_names_and_shapes_are_the_checkpoints():
    with torch.device("meta"):
        vae = WanVAE(VAEConfig(dim=96))
    shapes = {name: list(tensor.shape) for name, tensor in vae.state_dict().items()}
    assert shapes == json.loads((FACTS / "wan_vae_names.json").read_text())


def test_streaming_and_whole_video_agree_in_numbers_and_gradients():
    """17 frames: the fifth chunk sees a past of past chunks in both time samplers."""
    torch.manual_seed(0)
    vae = WanVAE(VAEConfig(dim=4)).double()
    video = torch.rand(2, 3, 17, 16, 16, dtype=torch.float64) * 2 - 1
    runs = []
    for vae.latents_per_chunk in CHUNKS:
        vae.zero_grad()
        mu, log_var = vae.encode_moments(video)
        out = vae.decode_raw(mu)
        (out.square().mean() + log_var.square().mean()).backward()
        runs.append([mu.detach(), out.detach(), *(p.grad.clone() for p in vae.parameters())])
    assert runs[0][0].shape == (2, 16, 5, 2, 2)
    assert runs[0][1].shape == video.shape
    assert all(gradient.any() for gradient in runs[0][2:])
    for other in runs[1:]:
        errors = [relative_error(b, a) for a, b in zip(runs[0], other, strict=True)]
        # norms are fp32 inside, so fp64 agrees to fp32 rounding only
        assert max(errors) < TOLERANCE, max(errors)


@torch.no_grad()
def test_the_past_reaches_forward_only():
    torch.manual_seed(0)
    vae = WanVAE(VAEConfig(dim=4))
    video = torch.rand(1, 3, 9, 16, 16)
    later = torch.cat((video[:, :, :5], torch.zeros_like(video[:, :, 5:])), dim=2)
    latent, changed = vae.encode(video), vae.encode(later)
    assert torch.equal(latent[:, :, :2], changed[:, :, :2])
    assert not torch.equal(latent[:, :, 2], changed[:, :, 2])
    assert torch.equal(vae.decode(latent)[:, :, :5], vae.decode(changed)[:, :, :5])


@torch.no_grad()
def test_an_image_is_a_video_of_one_frame():
    vae = WanVAE(VAEConfig(dim=4))
    latent = vae.encode(torch.zeros(1, 3, 1, 16, 24))
    assert latent.shape == (1, 16, 1, 2, 3)
    assert vae.decode(latent).shape == (1, 3, 1, 16, 24)


def test_wrong_shapes_are_refused():
    vae = WanVAE(VAEConfig(dim=4))
    for shape in ((1, 3, 8, 16, 16), (1, 3, 9, 12, 16), (1, 3, 9, 16, 20)):
        with pytest.raises(ValueError, match="valid: 4k \\+ 1 frames"):
            vae.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match="z_dim is 8"):
        WanVAE(VAEConfig(dim=4, z_dim=8))
    with pytest.raises(ValueError, match="latents_per_chunk is 0"):
        WanVAE(VAEConfig(dim=4), latents_per_chunk=0)
