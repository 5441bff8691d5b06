"""Quantised attention against torch_reference's independent recipe."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor

from ospnext_ms.kernels.attention import Attention
from ospnext_ms.quant.hif8_attention import AttentionInputs, HiF8Attention
from ospnext_ms.quant.recipe import HiF8Recipe
from tests.support.compare import relative_error
from tests.support.layers import Gradients, Weighted, normal
from tools.torch_reference import hif8 as reference


@pytest.mark.parametrize("compiled", [False, True])
def test_quantised_attention_and_its_gradients_agree_with_the_reference(compiled):
    q, k, v = normal(2, 9, 2, 16), normal(2, 13, 2, 16, seed=1), normal(2, 13, 2, 16, seed=2)
    weight = normal(2, 9, 2, 16, seed=3)
    attention = HiF8Attention(Attention("blockwise"), AttentionInputs(HiF8Recipe(), ms.float32))

    step = Gradients(Weighted(attention, Tensor(weight)), 3)
    value, actual = (ms.jit(step) if compiled else step)(Tensor(q), Tensor(k), Tensor(v))
    leaves = [torch.from_numpy(x).transpose(1, 2).requires_grad_() for x in (q, k, v)]
    out = reference.hif8_attention(15.0)(*leaves).transpose(1, 2)
    expected = (out * torch.from_numpy(weight)).sum()
    gradients = torch.autograd.grad(expected, leaves)
    assert abs(value.asnumpy() / expected.item() - 1) < 1e-5
    errors = [relative_error(a.asnumpy(), g.transpose(1, 2).numpy()) for a, g in zip(actual, gradients, strict=True)]
    assert max(errors) < 1e-5, errors


def test_kernel_of_quantised_attention_gets_codes_and_a_scaled_q():
    q, k, v = normal(1, 5, 2, 8), normal(1, 6, 2, 8, seed=1), normal(1, 6, 2, 8, seed=2)
    inputs = AttentionInputs(HiF8Recipe(), ms.float32)(Tensor(q), Tensor(k), Tensor(v))
    (q8, q_scale), (k8, k_scale), (v8, v_scale) = (reference.quantise(torch.from_numpy(x), 15.0) for x in (q, k, v))
    assert np.array_equal(inputs[1].asnumpy(), k8.numpy())
    assert np.array_equal(inputs[2].asnumpy(), v8.numpy())
    assert relative_error(inputs[0].asnumpy(), (q8 / q_scale / k_scale).numpy()) < 1e-6
    assert relative_error(inputs[3].asnumpy(), [(1 / v_scale).item()]) < 1e-6
