"""UMT5 against the original network's numbers, the PyTorch reference and the checkpoint's parameter names."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters
from safetensors.numpy import load_file

from ospnext_ms.models.umt5 import UMT5Config, UMT5Encoder, position_buckets
from tests.support.compare import relative_error
from tests.support.paths import FACTS

GOLDEN = UMT5Config(vocab_size=128, dim=64, ffn_dim=128, num_heads=4, num_layers=2)
XXL = UMT5Config(vocab_size=256384, dim=4096, ffn_dim=10240, num_heads=64, num_layers=24)


def load(encoder, weights):
    not_in_network, not_in_file = ms.load_param_into_net(
        encoder, {name: ms.Parameter(Tensor(value), name=name) for name, value in weights.items()}, strict_load=True)
    assert not not_in_network
    assert not not_in_file
    return encoder


@pytest.fixture(scope="module")
def arrays(golden):
    return np.load(golden / "umt5.npz")


@pytest.fixture(scope="module")
def encoder(golden):
    return load(UMT5Encoder(GOLDEN), load_file(golden / "umt5_weights.safetensors"))


def tensors(arrays):
    return Tensor(arrays["ids"], ms.int32), Tensor(arrays["mask"], ms.int32)


def test_original_network_with_mask(encoder, arrays):
    out = encoder(*tensors(arrays))
    assert out.dtype == ms.float32
    assert relative_error(out.asnumpy(), arrays["out"]) < 1e-5


def test_original_network_without_mask(encoder, arrays):
    assert relative_error(encoder(tensors(arrays)[0]).asnumpy(), arrays["out_nomask"]) < 1e-5


@pytest.mark.parametrize("masked", [True, False])
def test_jit_gives_the_same_numbers(encoder, arrays, masked):
    inputs = tensors(arrays)[: 1 + masked]
    compiled = ms.jit(encoder.construct)
    assert relative_error(compiled(*inputs).asnumpy(), encoder(*inputs).asnumpy()) < 1e-6


def test_padding_has_no_influence(encoder, arrays):
    ids, mask = tensors(arrays)
    length = int(arrays["mask"][1].sum())
    alone = encoder(ids[1:, :length], mask[1:, :length])
    assert relative_error(encoder(ids, mask)[1:, :length].asnumpy(), alone.asnumpy()) < 1e-6


def test_parameter_names_of_the_checkpoint():
    expected = json.loads((FACTS / "umt5_xxl_encoder_names.json").read_text())
    with no_init_parameters():
        encoder = UMT5Encoder(XXL, ms.bfloat16)
    assert {p.name: list(p.shape) for p in encoder.get_parameters()} == expected


def test_stored_dtypes():
    with no_init_parameters():
        encoder = UMT5Encoder(XXL, ms.bfloat16)
    for parameter in encoder.get_parameters():
        fp32 = "norm" in parameter.name or "pos_embedding" in parameter.name
        assert parameter.dtype == (ms.float32 if fp32 else ms.bfloat16), parameter.name


def test_graph_in_bf16_has_consistent_dtypes(tmp_path, monkeypatch):
    """Exporting runs the operators' own checks of shapes and dtypes, which Ascend would run, without computing."""
    monkeypatch.chdir(tmp_path)
    encoder = UMT5Encoder(GOLDEN, ms.bfloat16)
    ids = Tensor(np.zeros((2, 24)), ms.int32)
    ms.export(encoder, ids, ids, file_name="umt5", file_format="MINDIR")
    assert (tmp_path / "umt5.mindir").stat().st_size > 0


def test_fp16_is_refused():
    with pytest.raises(ValueError, match="Float16.*Float32, BFloat16"):
        UMT5Encoder(GOLDEN, ms.float16)


@pytest.mark.parametrize("num_buckets", [32, 64, 20])
def test_position_buckets_against_fp32_torch(num_buckets):
    """Distances 16, 32, 64 and 128 lie on borders of two buckets, so that the last bit of the arithmetic decides."""
    torch = pytest.importorskip("torch")
    length, half = 700, num_buckets // 2
    exact = half // 2
    distance = torch.arange(length)
    growth = torch.log(distance.float() / exact) / np.log(128 / exact) * (half - exact)
    expected = torch.where(distance < exact, distance, (exact + growth.nan_to_num(neginf=0).long()).clamp(max=half - 1))
    buckets = position_buckets(length, num_buckets)
    np.testing.assert_array_equal(buckets[:, 0], expected.numpy())
    np.testing.assert_array_equal(buckets[0, 1:], expected.numpy()[1:] + half)


def test_position_buckets_of_t5():
    buckets = position_buckets(200, 32)
    assert buckets.dtype == np.int32
    assert buckets[0, :9].tolist() == [0, 17, 18, 19, 20, 21, 22, 23, 24]
    assert [buckets[d, 0] for d in (7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 199)] == [
        7, 8, 9, 10, 11, 12, 13, 14, 15, 15, 15]
    for diagonal in range(-199, 200):
        assert len(set(buckets.diagonal(diagonal).tolist())) == 1


@pytest.mark.parametrize("length", [1, 77, 512])
def test_torch_reference(length):
    torch = pytest.importorskip("torch")
    reference_module = pytest.importorskip("tools.torch_reference.umt5")
    config = UMT5Config(vocab_size=300, dim=96, ffn_dim=160, num_heads=6, num_layers=3)
    generator = torch.Generator().manual_seed(length)
    reference = reference_module.UMT5Encoder(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            scale = 1.0 if parameter.ndim == 1 else 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.25)
        ids = torch.randint(0, config.vocab_size, (2, length), generator=generator)
        mask = (torch.arange(length) < torch.tensor([[length], [(length + 1) // 2]])).int()
        expected = reference(ids, mask)
    weights = {name: value.numpy() for name, value in reference.state_dict().items()}
    out = load(UMT5Encoder(config), weights)(Tensor(ids.numpy(), ms.int32), Tensor(mask.numpy(), ms.int32))
    assert relative_error(out.asnumpy(), expected.numpy()) < 1e-5
