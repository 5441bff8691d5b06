"""The PyTorch UMT5 encoder against the original network's numbers."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference networks need PyTorch")

from ospnext_ms.models.config import UMT5Config  # noqa: E402
from tests.support.compare import relative_error  # noqa: E402
from tests.support.paths import FACTS  # noqa: E402
from tools.torch_reference.loading import load  # noqa: E402
from tools.torch_reference.umt5 import RMSNorm, UMT5Encoder, relative_position_buckets  # noqa: E402

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def encoder(golden):
    config = UMT5Config(vocab_size=128, dim=64, ffn_dim=128, num_heads=4, num_layers=2)
    return load(UMT5Encoder(config), golden / "umt5_weights.safetensors")


@torch.no_grad()
@pytest.mark.parametrize(("masked", "expected"), [(True, "out"), (False, "out_nomask")])
def test_output_is_the_original(encoder, golden, masked, expected):
    with np.load(golden / "umt5.npz") as arrays:
        mask = torch.from_numpy(arrays["mask"]) if masked else None
        out = encoder(torch.from_numpy(arrays["ids"]), mask)
        assert relative_error(out, arrays[expected]) < TOLERANCE


def test_names_and_shapes_are_the_checkpoints():
    with torch.device("meta"):
        encoder = UMT5Encoder(UMT5Config(vocab_size=256384, dim=4096, ffn_dim=10240, num_heads=64, num_layers=24))
    shapes = {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert shapes == json.loads((FACTS / "umt5_xxl_encoder_names.json").read_text())


def test_buckets_are_t5s():
    """Against the T5 of the transformers library, over the whole text length of 512."""
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5", reason="compares with the transformers library")
    positions = torch.arange(512)
    expected = t5.T5Attention._relative_position_bucket(positions[None, :] - positions[:, None], True, 32, 128)
    assert torch.equal(relative_position_buckets(512, 32), expected)


@torch.no_grad()
def test_masked_tokens_do_not_reach_real_ones(encoder):
    torch.manual_seed(0)
    ids = torch.randint(0, 128, (1, 12))
    mask = torch.tensor([[1] * 7 + [0] * 5])
    other = torch.where(mask.bool(), ids, 127 - ids)
    assert torch.equal(encoder(ids, mask)[:, :7], encoder(other, mask)[:, :7])
    assert not torch.equal(encoder(ids)[:, :7], encoder(other)[:, :7])


@torch.no_grad()
def test_norm_of_bf16_is_rounded_once():
    torch.manual_seed(0)
    norm = RMSNorm(64).bfloat16()
    norm.weight.normal_()
    x = torch.randn(8, 64).bfloat16()
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    assert torch.equal(norm(x), exact.bfloat16())


@torch.no_grad()
def test_bf16_arithmetic_costs_about_what_rounding_the_weights_costs(encoder):
    """Unscaled scores make this network sensitive: rounded weights alone, with fp32 arithmetic, move it by 2 %."""
    half, rounded = UMT5Encoder(encoder.config).bfloat16(), UMT5Encoder(encoder.config)
    half.load_state_dict(encoder.state_dict())
    rounded.load_state_dict(half.state_dict())
    ids = torch.arange(128).view(4, 32)
    out, reference = half(ids), rounded(ids)
    assert out.dtype == torch.bfloat16
    assert relative_error(out.float(), reference) < 2 * relative_error(reference, encoder(ids))
