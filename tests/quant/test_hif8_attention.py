"""Quantised attention against torch_reference's independent recipe."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from ospnext_ms.kernels.attention import Attention
from ospnext_ms.kernels.collectives import ProcessGroup
from ospnext_ms.quant.hif8_attention import AttentionInputs, HiF8Attention, MeanOverTokens
from ospnext_ms.quant.recipe import HiF8Recipe
from tests.support.compare import relative_error
from tests.support.layers import Gradients, Weighted, normal
from tools.torch_reference import hif8 as reference


@pytest.mark.parametrize("centre_keys", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_quantised_attention_and_its_gradients_agree_with_the_reference(compiled, centre_keys):
    q, k, v = normal(2, 9, 2, 16), normal(2, 13, 2, 16, seed=1), normal(2, 13, 2, 16, seed=2)
    weight = normal(2, 9, 2, 16, seed=3)
    recipe = HiF8Recipe(centre_keys=centre_keys)
    attention = HiF8Attention(Attention("blockwise"), AttentionInputs(recipe, ms.float32))

    step = Gradients(Weighted(attention, Tensor(weight)), 3)
    value, actual = (ms.jit(step) if compiled else step)(Tensor(q), Tensor(k), Tensor(v))
    leaves = [torch.from_numpy(x).transpose(1, 2).requires_grad_() for x in (q, k, v)]
    out = reference.hif8_attention(15.0, reference.Refinements(centre_keys=centre_keys))(*leaves).transpose(1, 2)
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


class Centred(nn.Cell):
    """Attention, in which nothing is rounded, to k less its mean."""

    def __init__(self):
        super().__init__()
        self.attention = Attention("blockwise")
        self.mean = MeanOverTokens(ProcessGroup())

    def construct(self, q, k, v):
        return self.attention(q, k - self.mean(k), v)


@pytest.mark.parametrize("compiled", [False, True])
def test_no_softmax_sees_the_mean_of_the_keys(compiled):
    """Neither forward nor in any gradient: at most 1e-6 of the largest number."""
    q, k, v = normal(2, 40, 2, 16), normal(2, 60, 2, 16, seed=1), normal(2, 60, 2, 16, seed=2)
    k += normal(2, 1, 2, 16, seed=4)
    results = []
    for cell in (Attention("blockwise"), Centred()):
        step = ms.value_and_grad(Weighted(cell, Tensor(normal(2, 40, 2, 16, seed=3))), (0, 1, 2))
        _, gradients = (ms.jit(step) if compiled else step)(*map(Tensor, (q, k, v)))
        results.append([cell(*map(Tensor, (q, k, v))), *gradients])
    for plain, centred in zip(*results, strict=True):
        assert np.abs(plain.asnumpy() - centred.asnumpy()).max() <= 1e-6 * max(1, np.abs(plain.asnumpy()).max())


def test_centred_keys_lose_less_to_rounding():
    q, k, v = (normal(1, 30, 2, 16, seed=seed) for seed in range(3))
    k += 4 * normal(1, 1, 2, 16, seed=4)
    exact = Attention("blockwise")(*map(Tensor, (q, k, v))).asnumpy()
    errors = [relative_error(HiF8Attention(Attention("blockwise"), AttentionInputs(HiF8Recipe(centre_keys=centre),
                                                                                 ms.float32))(
        *map(Tensor, (q, k, v))).asnumpy(), exact) for centre in (False, True)]
    assert errors[1] < 0.8 * errors[0]
