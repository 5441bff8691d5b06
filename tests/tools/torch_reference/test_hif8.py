"""The reference's rounding to HiF8 against the independent package en_dtypes."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference networks need PyTorch")

from ospnext_ms.hif8_format import decode  # noqa: E402
from ospnext_ms.models.config import DiTConfig  # noqa: E402
from tests.support.hif8_numbers import BF16, hard_numbers, random_bits, reference_codes, same  # noqa: E402
from tools.torch_reference.dit import OSPNextDiT  # noqa: E402
from tools.torch_reference.hif8 import Refinements, build, hif8_attention, quantise, round_by_table, round_to_hif8  # noqa: E402


def test_torch_reference_rounds_the_same():
    x = np.concatenate([BF16, hard_numbers(), random_bits(1_000_000, seed=3)])
    assert same(round_to_hif8(torch.from_numpy(x)).numpy(), decode(reference_codes(x)))


def test_the_table_rounds_the_same():
    x = np.concatenate([BF16, hard_numbers(), random_bits(1_000_000, seed=4)])
    x = torch.from_numpy(x[~np.isnan(x)])
    assert torch.equal(round_by_table(x), round_to_hif8(x))


def attention_inputs(offset):
    """q, k, v [B, H, N, D]; k and v have means far from zero."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 40, 16, generator=generator) for _ in range(3))
    return q, k + offset * torch.randn(1, 3, 1, 16, generator=generator), v + offset


def test_centring_changes_no_number_that_is_not_rounded(monkeypatch):
    monkeypatch.setattr("tools.torch_reference.hif8._Dequantised.apply", lambda x, *_: x)
    results = []
    for refinements in (Refinements(), Refinements(centre_keys=True, centre_values=True, head_scales=True)):
        leaves = [x.double().requires_grad_() for x in attention_inputs(offset=1.0)]
        out = hif8_attention(15.0, refinements)(*leaves)
        gradients = torch.autograd.grad(out, leaves, torch.ones_like(out).cumsum(-1))
        results.append([out, *gradients])
    for plain, centred in zip(*results, strict=True):
        assert (plain - centred).abs().max() <= 1e-12 * plain.abs().max()


@pytest.mark.parametrize("name", ["centre_keys", "centre_values"])
def test_centring_takes_rounding_away(name):
    q, k, v = attention_inputs(offset=3.0)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    plain, centred = (hif8_attention(15.0, Refinements(**changes))(q, k, v) - exact for changes in ({}, {name: True}))
    assert centred.norm() < 0.8 * plain.norm()


def test_every_head_has_a_scale_of_its_own():
    x = torch.randn(2, 3, 5, 4) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    _, scale = quantise(x, 15.0, dim=(-4, -2, -1))
    assert scale.shape == (1, 3, 1, 1)
    torch.testing.assert_close(scale.flatten(), 15.0 / x.abs().amax((0, 2, 3)))


def test_the_ends_stay_as_they_are():
    config = replace(runs_config(), quant="hif8", quant_attention="hif8")
    plain = OSPNextDiT(runs_config())
    model = build(config, Refinements(plain_ends=1))
    kinds = [type(block.ffn[0]).__name__ for block in model.blocks]
    assert kinds == ["Linear", "HiF8Linear", "HiF8Linear", "Linear"]
    assert model.blocks[0].self_attn.attend is plain.blocks[0].self_attn.attend
    assert model.blocks[1].self_attn.attend is not plain.blocks[1].self_attn.attend


def runs_config():
    """A network of four blocks."""
    return DiTConfig(dim=12, ffn_dim=16, num_heads=2, num_layers=4, freq_dim=4, text_dim=4, text_len=2,
                     num_full_blocks=0)
