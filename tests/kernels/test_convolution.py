"""The two implementations of 3-D convolution against PyTorch, and what the native one hands to Ascend's operator."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, mint, nn
from safetensors.numpy import load_file

from ospnext_ms.kernels import convolution
from ospnext_ms.models import vae_blocks
from ospnext_ms.models.vae import VAEConfig, WanVAE
from tests.support.compare import relative_error
from tests.support.weights import set_weights

# batch, in and out channels, (T, H, W), kernel, stride, pad: every convolution of the network, odd sizes.
CASES = [
    (1, 5, 7, (6, 9, 11), (3, 3, 3), (1, 1, 1), (1, 1)),
    (2, 5, 7, (3, 9, 11), (3, 3, 3), (1, 1, 1), (1, 1)),
    (2, 5, 7, (3, 8, 10), (1, 3, 3), (1, 2, 2), (0, 1)),
    (1, 4, 2, (2, 5, 3), (1, 3, 3), (1, 1, 1), (1, 1)),
    (2, 5, 7, (5, 8, 10), (3, 1, 1), (2, 1, 1), (0, 0)),
    (1, 5, 10, (3, 4, 3), (3, 1, 1), (1, 1, 1), (0, 0)),
    (2, 5, 7, (2, 3, 4), (1, 1, 1), (1, 1, 1), (0, 0)),
]


def arrays_of(case):
    batch, in_channels, out_channels, size, kernel, _, _ = case
    rng = np.random.default_rng(0)
    shapes = (batch, in_channels, *size), (out_channels, in_channels, *kernel), (out_channels,)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def torch_conv3d(x, weight, bias, stride, padding):
    """PyTorch's convolution in place of mint's: same arguments, MindSpore tensors in and out."""
    assert isinstance(stride, tuple)
    assert isinstance(padding, tuple)
    assert len({tensor.dtype for tensor in (x, weight, bias)}) == 1
    x, weight, bias = (torch.from_numpy(tensor.asnumpy()) for tensor in (x, weight, bias))
    return Tensor(torch.nn.functional.conv3d(x, weight, bias, stride, padding).numpy())


@pytest.fixture
def mint_on_torch(monkeypatch):
    monkeypatch.setattr(mint.nn.functional, "conv3d", torch_conv3d)


def expected_of(case):
    x, weight, bias = (torch.from_numpy(array) for array in arrays_of(case))
    before, after = case[-1]
    x = torch.nn.functional.pad(x, (before, after, before, after))
    return torch.nn.functional.conv3d(x, weight, bias, case[-2]).numpy()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("block", [convolution.ELEMENTS_PER_BLOCK, 1000])
def test_gather(monkeypatch, case, block):
    monkeypatch.setattr(convolution, "ELEMENTS_PER_BLOCK", block)
    actual = convolution.gather_conv3d(*map(Tensor, arrays_of(case)), *case[-2:])
    assert relative_error(actual.asnumpy(), expected_of(case)) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_native_arguments(mint_on_torch, case):
    actual = convolution.native_conv3d(*map(Tensor, arrays_of(case)), *case[-2:])
    assert relative_error(actual.asnumpy(), expected_of(case)) < 1e-6


def test_gather_blocks_are_bounded(monkeypatch):
    """No gather holds more than ELEMENTS_PER_BLOCK elements."""
    sizes = []
    product = convolution._product
    monkeypatch.setattr(convolution, "ELEMENTS_PER_BLOCK", 20000)
    monkeypatch.setattr(convolution, "_product", lambda weight, rows: sizes.append(rows.size) or product(weight, rows))
    convolution.gather_conv3d(*map(Tensor, arrays_of(CASES[0])), *CASES[0][-2:])
    assert len(sizes) > 1
    assert max(sizes) <= 20000


def test_original_network_with_native_convolutions(mint_on_torch, golden):
    vae = set_weights(WanVAE(VAEConfig(6), convolution="native"), load_file(golden / "vae_weights.safetensors"))
    with np.load(golden / "vae_9_frames.npz") as arrays:
        assert relative_error(vae.encode(Tensor(arrays["video"])).asnumpy(), arrays["mu"]) < 1e-5
        assert relative_error(vae.decode(Tensor(arrays["z"])).asnumpy(), arrays["dec_of_z_clamped"]) < 1e-5


class Chunk(nn.Cell):
    """A chunk function as a Cell, to export it."""

    def __init__(self, vae, kind):
        super().__init__()
        self.vae = vae
        self.encodes = kind == "encode"

    def construct(self, x, *cache):
        return self.vae.encode_chunk(x, cache) if self.encodes else self.vae.decode_chunk(x, cache)


def cache_shapes(kind, dim):
    """Shapes of the cache for 16x16 video, from a run of the same network in fp32."""
    vae = WanVAE(VAEConfig(dim))
    if kind == "encode":
        return [t.shape for t in vae.encode_chunk(ms.ops.zeros((1, 3, 1, 16, 16)), ())[1]]
    return [t.shape for t in vae.decode_chunk(ms.ops.zeros((1, 16, 1, 2, 2)), ())[1]]


@pytest.mark.parametrize("kind", ["encode", "decode"])
def test_ascend_graph_passes_shape_inference(monkeypatch, tmp_path, kind):
    """Exporting runs the inference of the operators that exist on Ascend only: bf16, mint's convolution, flash."""
    monkeypatch.chdir(tmp_path)
    cache = [ms.ops.zeros(shape, ms.bfloat16) for shape in cache_shapes(kind, 4)]
    monkeypatch.setattr(vae_blocks, "default_attention", lambda dtype: "flash")
    vae = WanVAE(VAEConfig(4), dtype=ms.bfloat16, convolution="native")
    x = ms.ops.zeros((1, 3, 4, 16, 16) if kind == "encode" else (1, 16, 1, 2, 2))
    ms.export(Chunk(vae, kind), x, *cache, file_name="chunk", file_format="MINDIR")
    assert (tmp_path / "chunk.mindir").stat().st_size > 0
