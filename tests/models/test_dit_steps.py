"""The network with its blocks, and with a residual instead of them."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ospnext_ms.models.dit import DiTConfig, OSPNextDiT
from ospnext_ms.models.dit_steps import ComputedStep, ReusedStep
from tests.support.compare import relative_error


def inputs(t):
    generator = np.random.default_rng(0)
    return (Tensor(generator.standard_normal((1, 16, 2, 6, 8)).astype(np.float32)), Tensor([t], ms.float32),
            Tensor(generator.standard_normal((1, 5, 16)).astype(np.float32)))


# In one layout the tokens leave the blocks in token order, in the other in group order.
@pytest.mark.parametrize(("num_layers", "last_order"), [(3, "token"), (2, "group")])
def test_both_parts_are_the_network(num_layers, last_order):
    ms.set_seed(0)
    net = OSPNextDiT(DiTConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=num_layers, num_full_blocks=0, freq_dim=16,
                               text_dim=16, text_len=8))
    assert net.orders[-1] == last_order
    names = [parameter.name for parameter in net.get_parameters()]
    computed, reused = ComputedStep(net), ReusedStep(net)
    expected = net(*inputs(700.0))
    velocity, residual = computed(*inputs(700.0))
    assert (velocity.asnumpy() == expected.asnumpy()).all()
    assert relative_error(reused(*inputs(700.0), residual).asnumpy(), expected.asnumpy()) < 1e-5
    # The head sees the new time, and other than the blocks would make of it.
    later = reused(*inputs(650.0), residual).asnumpy()
    assert relative_error(later, expected.asnumpy()) > 1e-4
    assert relative_error(later, net(*inputs(650.0)).asnumpy()) > 1e-5
    assert [parameter.name for parameter in net.get_parameters()] == names
