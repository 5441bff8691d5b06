"""Quantised networks: which layers they have, and torch_reference's independent recipe as a second opinion."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from mindspore import Tensor

from ospnext_ms.kernels.collectives import ProcessGroup
from ospnext_ms.models.config import DiTConfig, QuantConfig
from ospnext_ms.models.dit import OSPNextDiT
from ospnext_ms.models.sequence import PackedSequence
from ospnext_ms.quant.hif8 import HiF8Linear
from ospnext_ms.quant.network import freeze_linears, quantized_parts
from ospnext_ms.quant.recipe import make_recipe
from tests.support.compare import relative_error
from tests.support.dit_twins import random_inputs, torch_twin
from tests.support.weights import set_weights
from tools.torch_reference import hif8 as reference

SMALL = DiTConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=1, freq_dim=32, text_dim=16, text_len=8, skiparse="full")
HIF8 = replace(SMALL, quant="hif8", quant_attention="hif8")


def test_transformer_agrees_with_the_reference():
    """A difference in the last digit flips a few roundings of later layers, so the bound is that of the quantisation
    itself: the two must be far closer to each other than to the network in fp32."""
    net, plain = torch_twin(SMALL, seed=3)
    quantised = OSPNextDiT(HIF8, **quantized_parts(HIF8))
    set_weights(quantised, {p.name: p.asnumpy() for p in net.get_parameters()})
    twin = reference.build(HIF8)
    twin.load_state_dict(plain.state_dict())
    x, t, text = random_inputs(HIF8, (2, 4, 4), 2, text_len=5)
    with torch.no_grad():
        expected = twin(*map(torch.from_numpy, (x, t, text))).numpy()
        unquantised = plain(*map(torch.from_numpy, (x, t, text))).numpy()
    actual = quantised(*map(Tensor, (x, t, text))).asnumpy()
    assert relative_error(actual, unquantised) > 0.005
    assert relative_error(actual, expected) < 0.1 * relative_error(actual, unquantised)


class WatchedSequence(PackedSequence):
    """Keeps the values it would have to send to other ranks."""

    def attend_full(self, attention, q_BNHD, k_BNHD, v_BNHD, grid, pattern):
        self.sent = v_BNHD.asnumpy()
        return super().attend_full(attention, q_BNHD, k_BNHD, v_BNHD, grid, pattern)


def test_blocks_at_the_ends_stay_plain():
    """In both implementations, and with the same numbers: one block of three is quantised."""
    plain_config = replace(SMALL, num_layers=3)
    config = replace(plain_config, quant="hif8", quant_attention="hif8",
                     quant_config=QuantConfig(plain_ends=1, centre_keys=True))
    plain, torch_plain = torch_twin(plain_config, seed=3)
    net, twin = OSPNextDiT(config, **quantized_parts(config)), reference.build(config)
    set_weights(net, {p.name: p.asnumpy() for p in plain.get_parameters()})
    twin.load_state_dict(torch_plain.state_dict())
    assert [isinstance(block.ffn[0], HiF8Linear) for block in net.blocks] == [False, True, False]
    assert [type(block.ffn[0]) is reference.HiF8Linear for block in twin.blocks] == [False, True, False]
    assert [block.self_attn.inputs is None for block in net.blocks] == [True, False, True]
    assert len(freeze_linears(net)) == 10
    x, t, text = random_inputs(config, (2, 4, 4), 2, text_len=5)
    with torch.no_grad():
        expected = twin(*map(torch.from_numpy, (x, t, text))).numpy()
    actual, unquantised = (cell(*map(Tensor, (x, t, text))).asnumpy() for cell in (net, plain))
    assert relative_error(actual, expected) < 0.1 * relative_error(actual, unquantised)
    with pytest.raises(ValueError, match=r"plain_ends is 2; with 3 layers it must be from 0 to 1"):
        replace(config, quant_config=QuantConfig(plain_ends=2))


@pytest.mark.parametrize("ranks", [1, 2])
def test_scales_of_one_rank_are_not_applied_to_what_others_send(ranks):
    sequence = WatchedSequence(2)
    group = ProcessGroup(tuple(range(ranks)))
    config = replace(SMALL, quant_attention="hif8")
    net = OSPNextDiT(config, sequence=sequence, **quantized_parts(config, video_group=group))
    net(*map(Tensor, random_inputs(SMALL, (2, 4, 4), batch=1, text_len=8)))
    # HiF8 numbers of this size have at most 4 significant bits.
    mantissa, _ = np.frexp(sequence.sent)
    is_quantised = np.all(mantissa * 16 == np.rint(mantissa * 16))
    assert is_quantised == (ranks == 1)


def test_layers_of_the_recipe_are_quantised_and_no_others():
    net = OSPNextDiT(HIF8, **quantized_parts(HIF8))
    quantised = {name for name, cell in net.cells_and_names() if isinstance(cell, HiF8Linear)}
    attention = {f"blocks.0.{kind}.{name}" for kind in ("self_attn", "cross_attn") for name in "qkvo"}
    assert quantised == attention | {"blocks.0.ffn.0", "blocks.0.ffn.2"}
    assert {p.name for p in net.get_parameters()} == {p.name for p in OSPNextDiT(SMALL).get_parameters()}
    linears = {name for name, m in reference.build(HIF8).named_modules() if isinstance(m, reference.HiF8Linear)}
    assert linears == quantised


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: replace(SMALL, quant_config=QuantConfig(backend="emulate")), "neither dit.quant nor"),
        (lambda: QuantConfig(backend="gpu"), "quant_config.backend is 'gpu'"),
        (lambda: QuantConfig(scale_scope="data"), "scale_scope is 'data'; valid: 'local', 'global'"),
        (lambda: QuantConfig(scale_max_forward=1e6), "scale_max_forward is 1000000.0"),
        (lambda: make_recipe(QuantConfig(backend="native")), "'native' does not exist here: the device is CPU"),
        (lambda: quantized_parts(replace(HIF8, quant_config=QuantConfig(backend="native"))), "does not exist here"),
        (lambda: OSPNextDiT(replace(SMALL, quant="hif8")), "dit.quant is 'hif8', but no linear is given"),
        (lambda: OSPNextDiT(replace(SMALL, quant_attention="hif8")), "no cross_attention is given"),
        (lambda: reference.build(replace(HIF8, quant_config=QuantConfig(backend="native"))), "which PyTorch has not"),
        (lambda: reference.quantise(torch.tensor([1.0, torch.inf]), 15.0), "largest absolute value is inf"),
        (lambda: reference.hif8_attention(15.0)(None, None, None, attn_mask=1), "no padding"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
