"""The network whose blocks take turns gives the numbers of the network, bit by bit."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from ospnext_ms.kernels.arrival import Place
from ospnext_ms.models.block_by_block import BeforeBlocks, BlockByBlock
from ospnext_ms.models.config import QuantConfig
from ospnext_ms.models.dit import DiTConfig, OSPNextDiT
from ospnext_ms.models.dit_steps import ComputedStep, ReusedStep
from ospnext_ms.models.lora import attach
from ospnext_ms.quant.network import freeze_linears, quantized_parts

SHAPE = dict(dim=32, ffn_dim=64, num_heads=2, freq_dim=16, text_dim=16, text_len=8)
HIF8 = dict(quant="hif8", quant_attention="hif8")
VARIANTS = {
    "full and sparse": dict(num_layers=8, num_full_blocks=4),
    "one block": dict(num_layers=1, skiparse="full"),
    "ends in group order": dict(num_layers=2, num_full_blocks=0),
    "hif8": dict(num_layers=4, num_full_blocks=0, **HIF8),
    "hif8 with plain ends": dict(num_layers=4, num_full_blocks=0, **HIF8, quant_config=QuantConfig(plain_ends=1)),
}


def network(variant):
    config = DiTConfig(**SHAPE | VARIANTS[variant])
    ms.set_seed(0)
    net = OSPNextDiT(config, **quantized_parts(config))
    net.set_train(False)
    generator = np.random.default_rng(1)
    for parameter in net.get_parameters():
        # As random biases and modulations as weights: a value in the wrong block shows.
        parameter.set_data(Tensor(generator.standard_normal(parameter.shape).astype(np.float32) * 0.1))
    freeze_linears(net)
    return net


def adapted(net):
    """On one kind of layer in all blocks, and on another in one block only."""
    generator = np.random.default_rng(2)
    layers = [f"blocks.{i}.self_attn.q" for i in range(len(net.blocks))] + ["blocks.1.cross_attn.v"]
    attach(net, {layer: (generator.standard_normal((3, 32)).astype(np.float32),
                         generator.standard_normal((32, 3)).astype(np.float32)) for layer in layers})
    return net


def inputs(seed):
    generator = np.random.default_rng(seed)
    return (Tensor(generator.standard_normal((1, 16, 2, 6, 8)).astype(np.float32)),
            Tensor(generator.uniform(0, 1000, 1).astype(np.float32)),
            Tensor(generator.standard_normal((1, 5, 16)).astype(np.float32)))


def assert_equal(streamed, expected):
    for seed in (0, 1, 0):
        assert (streamed(*inputs(seed)).asnumpy() == expected[seed]).all()


def as_it_is(net):
    return net


# Compiled, the smallest takes seconds and the others half a minute each.
COMPILED = [pytest.param(variant, ms.jit, marks=[pytest.mark.slow] if VARIANTS[variant]["num_layers"] > 2 else [])
            for variant in VARIANTS]


@pytest.mark.parametrize(("variant", "compiled"), [*((variant, as_it_is) for variant in VARIANTS), *COMPILED])
def test_the_numbers_of_the_network(variant, compiled):
    whole = compiled(network(variant))
    expected = [whole(*inputs(seed)).asnumpy() for seed in (0, 1)]
    assert (expected[0] != expected[1]).any()
    assert_equal(BlockByBlock(network(variant), compiled), expected)


@pytest.mark.parametrize("variant", ["full and sparse", "hif8"])
def test_with_adapters_of_some_layers(variant):
    whole = adapted(network(variant))
    expected = [whole(*inputs(seed)).asnumpy() for seed in (0, 1)]
    assert (expected[0] != network(variant)(*inputs(0)).asnumpy()).any()
    assert_equal(BlockByBlock(adapted(network(variant)), as_it_is), expected)


@pytest.mark.parametrize("variant", ["full and sparse", "ends in group order"])
def test_what_the_blocks_add(variant):
    expected = [output.asnumpy() for output in ComputedStep(network(variant))(*inputs(0))]
    net = network(variant)
    streamed = BlockByBlock(net, as_it_is)
    velocity, residual = streamed.computed(*inputs(0))
    assert (velocity.asnumpy() == expected[0]).all()
    assert (residual.asnumpy() == expected[1]).all()
    reused = ReusedStep(net)(*inputs(1), residual)
    assert (reused.asnumpy() == ReusedStep(network(variant))(*inputs(1), Tensor(expected[1])).asnumpy()).all()


def test_a_block_a_kind_is_compiled_with_memory_for_one():
    """The blocks' own weights are in no graph, so they need no memory where the graphs run."""
    cells = []

    def compiled(cell):
        cells.append(cell)
        return cell

    net = network("full and sparse")
    own = {id(parameter) for parameter in nn.CellList(list(net.blocks)).get_parameters()}
    rest = sum(parameter.size for parameter in net.get_parameters() if id(parameter) not in own)
    block = sum(parameter.size for parameter in net.blocks[0].get_parameters())
    BlockByBlock(net, compiled)
    used = {id(parameter): parameter for cell in cells for parameter in cell.get_parameters()}
    assert not own & set(used)
    assert sum(parameter.size for parameter in used.values()) == rest + block
    # Before, after and added; full and sparse blocks.
    assert len(cells) == 5


def test_the_hidden_states_are_in_one_place():
    """Graphs keep what they were given, see kernels.arrival.Place."""
    given = []

    def compiled(cell):
        def call(*inputs):
            if not isinstance(cell, BeforeBlocks):
                given.append(inputs[0])
            return cell(*inputs)
        return call

    streamed = BlockByBlock(network("full and sparse"), compiled)
    for seed in (0, 1):
        streamed(*inputs(seed))
    # Eight blocks and what is after them, twice.
    assert len(given) == 2 * 9
    assert len({id(tensor) for tensor in given}) == 1


def test_a_place_for_each_shape_and_dtype():
    """With processes that share a video the two orders may have other numbers of tokens here."""
    place = Place()
    first = place.put(Tensor([1.0, 2.0]))
    assert place.put(Tensor([5.0])).asnumpy().tolist() == [5]
    assert place.put(Tensor([6, 7], ms.int32)).dtype == ms.int32
    assert first.asnumpy().tolist() == [1, 2]
    assert place.put(Tensor([3.0, 4.0])) is first
    assert first.asnumpy().tolist() == [3, 4]
