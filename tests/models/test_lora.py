"""Adapters: the frozen network comes out exactly with them off, their gradients are right, merged equals unmerged."""

import time

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from ospnext_ms.kernels.assign import assign_values
from ospnext_ms.models.dit import DiTConfig, OSPNextDiT
from ospnext_ms.models.layers import Linear
from ospnext_ms.models.lora import Adapters
from ospnext_ms.models.lora_config import LoRAConfig
from ospnext_ms.storage.adapters import low_rank_product
from tests.support.compare import relative_error

CONFIG = DiTConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=4, freq_dim=16, text_dim=8, text_len=4,
                   num_full_blocks=0)
LORA = LoRAConfig(rank=3, alpha=6.0, targets=("q", "k", "v", "o"))


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    x, text = rng.standard_normal((2, 16, 1, 8, 8)), rng.standard_normal((2, 4, 8))
    return Tensor(x, ms.float32), Tensor([900.0, 40.0], ms.float32), Tensor(text, ms.float32)


def randomise(adapters, seed=1):
    rng = np.random.default_rng(seed)
    for parameter in adapters.parameters:
        ops.assign(parameter, Tensor(0.1 * rng.standard_normal(parameter.shape).astype(np.float32)))


@pytest.fixture(scope="module")
def adapted():
    """(network, adapters with random weights, output before there were adapters)."""
    net = OSPNextDiT(CONFIG)
    before = net(*inputs()).asnumpy()
    adapters = Adapters(net, LORA)
    randomise(adapters)
    return net, adapters, before


def test_new_adapters_change_nothing_and_no_name():
    net = OSPNextDiT(CONFIG)
    names = [name for name, _ in net.parameters_and_names()]
    before = net(*inputs()).asnumpy()
    adapters = Adapters(net, LORA)
    np.testing.assert_array_equal(net(*inputs()).asnumpy(), before)
    now = [name for name, _ in net.parameters_and_names()]
    assert [name for name in now if ".adapter." not in name] == names
    assert [parameter.name for parameter in net.trainable_params()] == [p.name for p in adapters.parameters]
    assert len(adapters.parameters) == 2 * 8 * CONFIG.num_layers


def test_on_and_off_in_one_graph(adapted):
    net, adapters, before = adapted
    compiled = ms.jit(net)
    began = time.perf_counter()
    on = compiled(*inputs()).asnumpy()
    compilation = time.perf_counter() - began
    assert relative_error(on, before) > 0.01
    began = time.perf_counter()
    with adapters.disabled():
        assert relative_error(compiled(*inputs()).asnumpy(), before) < 1e-6
        np.testing.assert_array_equal(net(*inputs()).asnumpy(), before)
    np.testing.assert_array_equal(compiled(*inputs()).asnumpy(), on)
    assert time.perf_counter() - began < compilation, "three calls took as long as compiling and one call"
    arrays = adapters.arrays()
    adapters.load({name: (a, 0 * b) for name, (a, b) in arrays.items()})
    assert relative_error(compiled(*inputs()).asnumpy(), before) < 1e-6
    adapters.load(arrays)


def test_formula():
    linear = Linear(5, 7)
    adapters = Adapters(nn.SequentialCell(linear), LoRAConfig(rank=2, alpha=3.0, targets=("0",)))
    randomise(adapters)
    (a, b), = adapters.arrays().values()
    x = np.random.default_rng(2).standard_normal((4, 5)).astype(np.float32)
    expected = x @ linear.weight.asnumpy().T + linear.bias.asnumpy() + 1.5 * x @ a.T @ b.T
    np.testing.assert_allclose(linear(Tensor(x)).asnumpy(), expected, rtol=1e-5, atol=1e-6)


def test_gradients_against_finite_differences(adapted):
    net, adapters, _ = adapted
    weight = Tensor(np.random.default_rng(3).standard_normal((2, 16, 1, 8, 8)), ms.float32)

    def loss(x, t, text):
        return (net(x, t, text) * weight).sum()

    gradients = ms.value_and_grad(loss, None, adapters.parameters)(*inputs())[1]
    for i in (0, 27, 63):
        parameter, gradient = adapters.parameters[i], gradients[i].asnumpy()
        values, direction = parameter.asnumpy().copy(), gradient / np.linalg.norm(gradient)
        around = []
        for step in (1e-2, -1e-2):
            parameter.set_data(Tensor(values + step * direction))
            around.append(float(loss(*inputs())))
        parameter.set_data(Tensor(values))
        assert (around[0] - around[1]) / 2e-2 == pytest.approx(np.linalg.norm(gradient), rel=2e-2)


def test_merged_equals_unmerged():
    net = OSPNextDiT(CONFIG)
    weights = dict(net.parameters_and_names())
    adapters = Adapters(net, LORA)
    randomise(adapters)
    unmerged = net(*inputs()).asnumpy()
    for layer, (a, b) in adapters.arrays().items():
        weight = weights[f"{layer}.weight"]
        assign_values(weight, weight.asnumpy() + low_rank_product(a, b, LORA.scaling))
    with adapters.disabled():
        assert relative_error(net(*inputs()).asnumpy(), unmerged) < 1e-5


def test_saved_arrays_restore_the_adapter(adapted):
    net, adapters, _ = adapted
    arrays, expected = adapters.arrays(), net(*inputs()).asnumpy()
    randomise(adapters, seed=5)
    assert relative_error(net(*inputs()).asnumpy(), expected) > 1e-3
    adapters.load(arrays)
    np.testing.assert_array_equal(net(*inputs()).asnumpy(), expected)


def test_arrays_that_do_not_fit(adapted):
    _, adapters, _ = adapted
    arrays = adapters.arrays()
    name = next(iter(arrays))
    wrong = {**arrays, name: (arrays[name][0][:2], arrays[name][1]), "blocks.9.self_attn.q": arrays[name]}
    with pytest.raises(ValueError, match=r"unexpected: blocks.9.self_attn.q.*lora_A has shape \(2, 32\)"):
        adapters.load(wrong)


@pytest.mark.parametrize(("changes", "message"), [
    ({"targets": ("q", "to_v")}, "'to_v' fits no linear layer.*self_attn.v"),
    ({"rank": 0}, "rank is 0"),
    ({"alpha": 0.0}, "alpha is 0.0"),
    ({"targets": ()}, "targets is"),
])
def test_invalid_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        Adapters(OSPNextDiT(CONFIG), LoRAConfig(**{"rank": 2, "alpha": 4.0, "targets": ("q",), **changes}))


def test_a_network_gets_adapters_once(adapted):
    net, _, _ = adapted
    with pytest.raises(ValueError, match="adapters already"):
        Adapters(net, LORA)
