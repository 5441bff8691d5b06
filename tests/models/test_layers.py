"""The update of the residual stream, whose gradient is written out."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ospnext_ms.models.layers import GatedUpdate


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]


@pytest.mark.parametrize("compiled", [False, True])
def test_the_gated_update_and_its_gradient(compiled):
    """Bit by bit the plain expression, and its derivative."""
    *inputs, weights = arrays((2, 7, 6), (2, 7, 6), (2, 1, 6), (2, 7, 6))
    cell = GatedUpdate()

    def written_out(x, y, gate, weights):
        out = cell(x, y, gate)
        return (out * weights).sum(), out

    def derived(x, y, gate, weights):
        out = x + y * gate
        return (out * weights).sum(), out

    found, expected = (ms.value_and_grad(function, (0, 1, 2), has_aux=True) for function in (written_out, derived))
    (_, out), gradients = (ms.jit(found) if compiled else found)(*inputs, weights)
    (_, plain), plain_gradients = expected(*inputs, weights)
    np.testing.assert_array_equal(out.asnumpy(), plain.asnumpy())
    for gradient, other in zip(gradients, plain_gradients, strict=True):
        np.testing.assert_allclose(gradient.asnumpy(), other.asnumpy(), rtol=1e-6, atol=1e-6)


def test_the_update_is_rounded_once():
    x, y, gate = arrays((1, 5, 8), (1, 5, 8), (1, 1, 8))
    out = GatedUpdate()(x.astype(ms.float16), y, gate)
    expected = (x.astype(ms.float16).asnumpy().astype(np.float32) + y.asnumpy() * gate.asnumpy()).astype(np.float16)
    assert out.dtype == ms.float16
    np.testing.assert_array_equal(out.asnumpy(), expected)
