"""What the kernels hand to operators that Ascend alone has fast: each is put in the place of the operator, with the
meaning that its documentation gives, and the kernel's contract is measured. The dry run compiles the operators."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, mint, nn, ops

from ospnext_ms.kernels import adamw, fan_out, linear, norms, reductions, rotary, slices, timesteps
from ospnext_ms.models.layers import timestep_frequencies


@pytest.fixture
def ascend(monkeypatch):
    """The kernels take their forms for Ascend."""
    for module in (linear, norms, reductions, slices, timesteps):
        monkeypatch.setattr(module, "for_ascend", lambda: True)
    for module in (adamw, fan_out, rotary, slices, timesteps):
        monkeypatch.setattr(module, "on_ascend", lambda: True)
    return monkeypatch


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_layer_norm(ascend):
    seen = []

    def operator(x, shape, weight, bias, eps):
        seen.append((shape, eps))
        values = x.asnumpy().astype(np.float64)
        y = (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + eps)
        return Tensor((y if weight is None else y * weight.asnumpy() + bias.asnumpy()).astype(np.float32))

    ascend.setattr(mint.nn.functional, "layer_norm", operator)
    x, weight, bias = normal(2, 5, 24), normal(24, seed=1), normal(24, seed=2)
    with_affine = norms.layer_norm(Tensor(x), Tensor(weight), Tensor(bias), 1e-6).asnumpy()
    without = norms.layer_norm(Tensor(x), None, None, 1e-6).asnumpy()
    ascend.setattr(norms, "for_ascend", lambda: False)
    np.testing.assert_allclose(with_affine, norms.layer_norm(Tensor(x), Tensor(weight), Tensor(bias), 1e-6).asnumpy(),
                               rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(without, norms.layer_norm(Tensor(x), None, None, 1e-6).asnumpy(), rtol=1e-5, atol=1e-6)
    assert seen == [((24,), 1e-6)] * 2


def test_rms_norm(ascend):
    def operator(x, gamma, epsilon):
        values = x.asnumpy().astype(np.float64)
        rstd = 1 / np.sqrt((values**2).mean(-1, keepdims=True) + epsilon)
        return Tensor((values * rstd * gamma.asnumpy()).astype(np.float32)), Tensor(rstd.astype(np.float32))

    ascend.setattr(ops, "rms_norm", operator)
    ascend.setattr(mint, "clone", lambda x: x)
    x, weight = normal(2, 5, 24), normal(24, seed=1)
    found = norms.rms_norm(Tensor(x), Tensor(weight), 1e-6)
    ascend.setattr(norms, "for_ascend", lambda: False)
    np.testing.assert_allclose(found.asnumpy(), norms.rms_norm(Tensor(x), Tensor(weight), 1e-6).asnumpy(), rtol=1e-5)


def test_rotation(ascend):
    """RotaryPositionEmbedding of mode 1 (interleaved): x cos + (-x[1], x[0], -x[3], ...) sin, tables [1, N, 1, D]."""
    modes = []

    def operator(x, cos, sin, mode):
        modes.append(mode)
        values = x.asnumpy()
        turned = np.stack((-values[..., 1::2], values[..., 0::2]), -1).reshape(values.shape)
        assert cos.shape == sin.shape == (1, values.shape[1], 1, values.shape[3])
        return Tensor(values * cos.asnumpy() + turned * sin.asnumpy())

    ascend.setattr(ops, "rotary_position_embedding", operator)
    x, (cos, sin) = Tensor(normal(2, 6, 3, 10)), rotary.rotations(normal(6, 5), normal(6, 5))
    found = rotary.RotatePairs()(x, cos, sin).asnumpy()
    ascend.setattr(rotary, "on_ascend", lambda: False)
    np.testing.assert_array_equal(found, rotary.RotatePairs()(x, cos, sin).asnumpy())
    assert modes == [1]


def test_adamw(ascend):
    """AdamW (aclnnApplyAdamWV2) by its documentation, the step counted from 1 as MindSpore's own optimiser hands it."""
    def operator(p, m, v, _, gradient, step, rate, beta1, beta2, decay, eps, amsgrad, maximize):
        assert not amsgrad
        assert not maximize
        assert (step.dtype, step.shape) == (ms.float32, (1,))
        g, t = gradient.asnumpy().astype(np.float64), float(step.asnumpy()[0])
        m_new, v_new = beta1 * m.asnumpy() + (1 - beta1) * g, beta2 * v.asnumpy() + (1 - beta2) * g * g
        change = rate * m_new / (1 - beta1**t) / (np.sqrt(v_new / (1 - beta2**t)) + eps)
        for tensor, values in ((p, p.asnumpy() * (1 - rate * decay) - change), (m, m_new), (v, v_new)):
            ops.assign(tensor, Tensor(values.astype(np.float32)))

    def updated():
        tensors = [Parameter(Tensor(values), name=name) for name, values in
                   (("p", normal(3, 4)), ("m", normal(3, 4, seed=1)), ("v", normal(3, 4, seed=2) ** 2))]
        adamw.adamw_update(*tensors, Tensor(normal(3, 4, seed=3)), Tensor([3.0]), 0.01, (0.9, 0.95), 1e-8, 0.1)
        return [tensor.asnumpy() for tensor in tensors]

    ascend.setattr(adamw, "AdamW", lambda: operator)
    found = updated()
    ascend.setattr(adamw, "on_ascend", lambda: False)
    for one, other in zip(found, updated(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_bias(ascend):
    x, weight, bias = Tensor(normal(2, 3, 8)), Tensor(normal(5, 8)), Tensor(normal(5))
    found = linear.project(x, weight, bias).asnumpy()
    ascend.setattr(linear, "for_ascend", lambda: False)
    np.testing.assert_array_equal(found, linear.project(x, weight, bias).asnumpy())


def test_parts_of_tensors(ascend):
    ascend.setattr(mint, "narrow", lambda x, axis, start, length: Tensor(np.take(
        x.asnumpy(), np.arange(start, start + length), axis)))
    ascend.setattr(mint, "split", lambda x, sizes, axis: tuple(map(Tensor, np.split(
        x.asnumpy(), np.cumsum(sizes)[:-1], axis))))
    ascend.setattr(mint, "chunk", lambda x, count, axis: tuple(map(Tensor, np.split(x.asnumpy(), count, axis))))
    ascend.setattr(mint, "index_select", lambda x, axis, indices: Tensor(np.take(x.asnumpy(), indices.asnumpy(), axis)))
    ascend.setattr(mint, "stack", lambda parts, axis: Tensor(np.stack([part.asnumpy() for part in parts], axis)))
    x, order = Tensor(normal(4, 6, 8)), Tensor(np.array([2, 0, 3, 1, 5, 4], np.int32))
    calls = (lambda: [slices.narrow(x, axis, 1, 3) for axis in range(3)], lambda: slices.split(x, [2, 4], 1),
             lambda: slices.chunk(x, 2, 2), lambda: [slices.take(x, order, 1)], lambda: [slices.pair(x)])
    found = [[part.asnumpy() for part in call()] for call in calls]
    ascend.setattr(slices, "for_ascend", lambda: False)
    for parts, call in zip(found, calls, strict=True):
        for part, other in zip(parts, call(), strict=True):
            np.testing.assert_array_equal(part, other.asnumpy())


@pytest.mark.parametrize("axis", [0, 1])
def test_a_permutation_and_its_gradient(axis):
    x, weight = Tensor(normal(6, 6, 4)), Tensor(normal(6, 6, 4, seed=1))
    order = np.array([2, 0, 3, 1, 5, 4])
    cell, indices = slices.Permute(axis), [Tensor(i, ms.int32) for i in (order, np.argsort(order))]
    step = ms.value_and_grad(lambda x: (cell(x, *indices) * weight).sum(), 0)
    value, gradient = step(x)
    plain = ms.value_and_grad(lambda x: (ops.gather(x, indices[0], axis) * weight).sum(), 0)(x)
    np.testing.assert_array_equal(gradient.asnumpy(), plain[1].asnumpy())
    assert float(value) == float(plain[0])


class _Weighted(nn.Cell):
    def __init__(self, cell, count):
        super().__init__()
        self.cell = cell
        self.count = count

    def construct(self, x, *weights):
        parts = self.cell(x)
        total = 0
        for i in range(self.count):
            total = total + (parts[i] * weights[i]).sum()
        return total


@pytest.mark.parametrize("count", [2, 3])
def test_a_tensor_for_several_uses_and_its_gradient(ascend, count):
    """Bit by bit what AddN's order of summation gives, in a compiled graph."""
    x, weights = Tensor(normal(5, 7)), [Tensor(normal(5, 7, seed=seed)) for seed in range(1, 1 + count)]
    gradients = {}
    for name in ("added", "plain"):
        cell = fan_out.fan_out(count)
        assert isinstance(cell, fan_out.AddedFanOut) == (name == "added")

        gradients[name] = ms.jit(ms.grad(_Weighted(cell, count)))(x, *weights).asnumpy()
        ascend.setattr(fan_out, "on_ascend", lambda: False)
    np.testing.assert_array_equal(gradients["added"], gradients["plain"])


def test_means(ascend):
    ascend.setattr(mint, "mean", lambda x, axes=None: Tensor(x.asnumpy().mean(axes)))
    x = Tensor(normal(3, 4, 5))
    assert float(reductions.mean(x)) == pytest.approx(float(x.mean()), rel=1e-6)
    np.testing.assert_allclose(reductions.mean_per_sample(x).asnumpy(), x.asnumpy().mean((1, 2)), rtol=1e-6)


def test_sinusoid_without_float64(ascend):
    """As near to the exact numbers as fp32 can be, up to the last angle of 1000."""
    frequencies = timestep_frequencies(256)
    t = np.concatenate([np.linspace(0, 1000, 301), np.random.default_rng(0).uniform(0, 1000, 200)]).astype(np.float32)
    found = timesteps.Sinusoid(frequencies)(Tensor(t)).asnumpy()
    angles = t.astype(np.float64)[:, None] * frequencies
    expected = np.concatenate([np.cos(angles), np.sin(angles)], 1)
    assert np.abs(found - expected).max() < 5e-7
    plain = np.float32(t)[:, None] * np.float32(frequencies)
    assert np.abs(np.sin(plain) - np.sin(angles)).max() > 1e-5


def test_log_without_float64(ascend):
    """MindSpore's fp32 kernel on CPU is 2e-6 off at times. A log-probability's ratio does not see it: the same number
    is taken off both."""
    x = np.exp(np.linspace(-8, 1, 100)).astype(np.float32)
    found = timesteps.log(Tensor(x))
    assert found.dtype == ms.float32
    np.testing.assert_allclose(found.asnumpy(), np.log(x.astype(np.float64)), atol=5e-6)
