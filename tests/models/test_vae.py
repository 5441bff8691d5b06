"""WanVAE against the original network's numbers, torch_reference and the checkpoint's parameter names."""

import json
import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters
from safetensors.numpy import load_file

from ospnext_ms.models.vae import LATENT_MEAN, LATENT_STD, VAEConfig, WanVAE
from tests.support.compare import relative_error
from tests.support.paths import ROOT
from tests.support.weights import set_weights
from tools.torch_reference.vae import WanVAE as TorchVAE

NAMES = ROOT / "tests/facts/wan_vae_names.json"


def golden_vae(golden, **options):
    return set_weights(WanVAE(VAEConfig(6), **options), load_file(golden / "vae_weights.safetensors"))


def chunks(vae, latent):
    """Unclamped frames of every latent frame, and the cache after each."""
    cache, frames, caches = (), [], []
    for index in range(latent.shape[2]):
        frame, cache = vae.decode_chunk(Tensor(latent[:, :, index : index + 1]), cache)
        frames.append(frame.asnumpy())
        caches.append(cache)
    return frames, caches


@pytest.fixture(scope="module")
def vae(golden):
    return golden_vae(golden)


@pytest.fixture(scope="module")
def arrays(golden):
    with np.load(golden / "vae_9_frames.npz") as archive:
        return {name: archive[name] for name in archive.files}


def test_original_encoder(vae, arrays):
    mu = vae.encode(Tensor(arrays["video"]))
    assert mu.dtype == ms.float32
    assert relative_error(mu.asnumpy(), arrays["mu"]) < 1e-5
    mean, std = (np.reshape(values, (1, -1, 1, 1, 1)) for values in (LATENT_MEAN, LATENT_STD))
    assert relative_error(mu.asnumpy() * std + mean, arrays["mu_raw"]) < 1e-5


@pytest.mark.parametrize("latent", ["z", "mu"])
def test_original_decoder(vae, arrays, latent):
    frames, _ = chunks(vae, arrays[latent])
    assert [frame.shape[2] for frame in frames] == [1, 4, 4]
    assert relative_error(np.concatenate(frames, 2), arrays[f"dec_of_{latent}"]) < 1e-5
    video = vae.decode(Tensor(arrays[latent]))
    assert video.dtype == ms.float32
    assert relative_error(video.asnumpy(), arrays[f"dec_of_{latent}_clamped"]) < 1e-5


def test_decode_frames_gives_the_frames_of_decode(vae, arrays):
    latent = Tensor(arrays["z"])
    frames = [chunk.asnumpy() for chunk in vae.decode_frames(latent)]
    assert [frame.shape[2] for frame in frames] == [1, 4, 4]
    np.testing.assert_array_equal(np.concatenate(frames, 2), vae.decode(latent).asnumpy())


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16])
def test_names_shapes_and_dtypes_of_the_released_model(dtype):
    with no_init_parameters():
        vae = WanVAE(VAEConfig(96), dtype=dtype)
    assert {p.name: list(p.shape) for p in vae.get_parameters()} == json.loads(NAMES.read_text())
    assert {p.dtype for p in vae.get_parameters() if p.name.endswith("gamma")} == {ms.float32}
    assert {p.dtype for p in vae.get_parameters() if not p.name.endswith("gamma")} == {dtype}


@pytest.mark.parametrize(("kind", "key"), [pytest.param("encode", "video", marks=pytest.mark.slow), ("decode", "z")])
def test_compiled_chunks_give_the_same_numbers(golden, vae, arrays, kind, key):
    """First, second and later chunks, output and every tensor of the cache."""
    eager, compiled = (getattr(net, f"_{kind}_chunk") for net in (vae, golden_vae(golden, compile_chunks=True)))
    x = arrays[key]
    starts = [0, *range(1, x.shape[2], 4 if kind == "encode" else 1)]
    caches = [(), ()]
    for start, stop in zip(starts, [*starts[1:], x.shape[2]], strict=True):
        chunk = Tensor(x[:, :, start:stop])
        (expected, caches[0]), (actual, caches[1]) = eager(chunk, caches[0]), compiled(chunk, caches[1])
        assert relative_error(actual.asnumpy(), expected.asnumpy()) < 1e-6
        assert len(caches[0]) == len(caches[1])
        for one, other in zip(*caches, strict=True):
            assert relative_error(other.asnumpy(), one.asnumpy()) < 1e-6
    assert start > starts[1], "no chunk ran on the cache of a later chunk"


def test_compiled_chunks_take_the_cache_as_a_variable(monkeypatch):
    """A plain tuple of tensors would be a constant, and every chunk would compile its own graph."""
    seen = []
    monkeypatch.setattr(ms, "jit", lambda function: lambda x, cache: seen.append(cache) or function(x, cache))
    list(WanVAE(VAEConfig(2), compile_chunks=True).decode_frames(ms.ops.zeros((1, 16, 3, 1, 1))))
    assert [len(cache) > 0 and getattr(cache, "__ms_mutable__", False) for cache in seen] == [False, True, True]


def random_pair(seed):
    """A torch_reference VAE with random weights (gains away from 1, biases away from 0) and its MindSpore twin."""
    torch.manual_seed(seed)
    config = VAEConfig(8)
    reference = TorchVAE(config)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith("gamma"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return set_weights(WanVAE(config), {n: p.detach().numpy() for n, p in reference.named_parameters()}), reference


@pytest.mark.parametrize(("batch", "latents", "height", "width"), [(1, 1, 40, 56), (2, 1, 8, 16), (1, 4, 40, 56),
                                                                  (2, 3, 24, 8)])
def test_parity_with_torch_reference(batch, latents, height, width):
    vae, reference = random_pair(seed=3)
    rng = np.random.default_rng(4)
    video = rng.uniform(-1, 1, (batch, 3, 4 * latents - 3, height, width)).astype(np.float32)
    latent = rng.normal(size=(batch, 16, latents, height // 8, width // 8)).astype(np.float32)
    with torch.no_grad():
        mu, frames = reference.encode(torch.from_numpy(video)), reference.decode(torch.from_numpy(latent))
    assert (frames.abs() < 1).float().mean() > 0.01, "everything was clamped"
    assert relative_error(vae.encode(Tensor(video)).asnumpy(), mu.numpy()) < 1e-5
    assert relative_error(vae.decode(Tensor(latent)).asnumpy(), frames.numpy()) < 1e-5


def test_half_precision_convolutions_give_nearly_the_same(golden, arrays):
    """float16 stands in for bf16, which the CPU cannot multiply: every cast on the way is exercised."""
    vae = golden_vae(golden, dtype=ms.float16)
    mu, video = vae.encode(Tensor(arrays["video"])), vae.decode(Tensor(arrays["z"]))
    assert mu.dtype == video.dtype == ms.float32
    assert 1e-5 < relative_error(mu.asnumpy(), arrays["mu"]) < 1e-2
    assert 1e-5 < relative_error(video.asnumpy(), arrays["dec_of_z_clamped"]) < 1e-2


def test_cache_does_not_grow_with_the_number_of_frames(vae):
    _, caches = chunks(vae, np.random.default_rng(0).normal(size=(1, 16, 8, 4, 4)).astype(np.float32))
    shapes = [tensor.shape for tensor in caches[0]]
    assert all([tensor.shape for tensor in cache] == shapes for cache in caches)
    # Two frames in front of each of the 32 temporal convolutions; a view would keep its whole chunk alive.
    assert len(shapes) == 32
    assert {shape[2] for shape in shapes} == {2}
    assert all(tensor.is_contiguous() for tensor in caches[-1])


def test_a_chunk_leaves_its_cache_untouched(vae, arrays):
    """The same call again gives the same: nothing is remembered in the Cell."""
    _, caches = chunks(vae, arrays["z"][:, :, :2])
    before = [tensor.asnumpy().copy() for tensor in caches[-1]]
    last = Tensor(arrays["z"][:, :, 2:])
    first, second = (vae.decode_chunk(last, caches[-1])[0].asnumpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    for tensor, expected in zip(caches[-1], before, strict=True):
        np.testing.assert_array_equal(tensor.asnumpy(), expected)


PEAK_MEMORY = """
import sys
import mindspore as ms
ms.set_context(mode=ms.PYNATIVE_MODE)
ms.runtime.launch_blocking()
from ospnext_ms.models.vae import VAEConfig, WanVAE
from tests.support.resident import resident
kind, compiled, videos, latents = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3]), int(sys.argv[4])
vae = WanVAE(VAEConfig(8), compile_chunks=compiled)
for _ in range(videos):
    if kind == "decode":
        for frames in vae.decode_frames(ms.ops.zeros((1, 16, latents, 12, 12))):
            frames.asnumpy()
    else:
        vae.encode(ms.ops.zeros((1, 3, 4 * latents - 3, 96, 96))).asnumpy()
print(resident() / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["encode", "decode"])
def test_peak_memory_does_not_grow_with_the_number_of_frames(kind, compiled, tmp_path):
    """One video of 44 latent frames takes what eleven of 4 take, or the longer video (18 MiB) more; keeping its caches
    would cost over 170 MiB. As many frames in both: uncompiled, MindSpore keeps some memory of every operator."""
    peaks = []
    for videos, latents in ((11, 4), (1, 44)):
        command = [sys.executable, "-c", PEAK_MEMORY, kind, str(compiled), str(videos), str(latents)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr[-2000:]
        peaks.append(float(done.stdout.split()[-1]))
    longer_video_mib = (173 - 13) * 3 * 96 * 96 * 4 / 2**20 if kind == "encode" else 0
    print(f"{peaks[0]:.1f} and {peaks[1]:.1f} MiB")
    assert peaks[1] - peaks[0] < longer_video_mib + 8


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 8, 16, 16), r"a video's number of frames is 8; it must be 4k\+1 .*; nearest valid: 5 and 9"),
        ((1, 3, 0, 16, 16), "frames is 0; .* nearest valid: 1$"),
        ((1, 3, 5, 20, 16), "height is 20; .* nearest valid: 16 and 24"),
        ((1, 3, 5, 16, 4), "width is 4; .* nearest valid: 8$"),
        ((1, 4, 5, 16, 16), r"video has shape \(1, 4, 5, 16, 16\); it must be \[B, 3, F, H, W\]"),
        ((3, 5, 16, 16), r"video has shape \(3, 5, 16, 16\)"),
    ],
)
def test_bad_videos_are_named(vae, shape, words):
    with pytest.raises(ValueError, match=words):
        vae.encode(Tensor(np.zeros(shape, np.float32)) if 0 not in shape else FakeTensor(shape))


class FakeTensor:
    """A shape that MindSpore has no tensor for."""

    def __init__(self, shape):
        self.shape = shape


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 15, 2, 4, 4), r"latent has shape \(1, 15, 2, 4, 4\); it must be \[B, 16, T, h, w\]"),
        ((16, 2, 4, 4), "it must be"),
        ((1, 16, 0, 4, 4), "every dimension must be at least 1"),
    ],
)
def test_bad_latents_are_named_before_anything_runs(vae, shape, words):
    latent = Tensor(np.zeros(shape, np.float32)) if 0 not in shape else FakeTensor(shape)
    for decode in (vae.decode, vae.decode_frames):
        with pytest.raises(ValueError, match=words):
            decode(latent)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="vae.z_dim is 8; latent statistics are known for 16"):
        WanVAE(VAEConfig(4, z_dim=8))
    with pytest.raises(ValueError, match="convolution is 'fast'; valid: 'native', 'gather'"):
        WanVAE(VAEConfig(4), convolution="fast")
