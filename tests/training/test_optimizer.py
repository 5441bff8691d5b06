"""Optimiser and learning-rate schedules, each against a formula in NumPy."""

import numpy as np
import pytest
from mindspore import Parameter, Tensor

from ospnext_ms.config.train import LearningRateSection
from ospnext_ms.training.chunks import in_chunks
from ospnext_ms.training.optimizer import is_decayed, make_optimizer, make_schedule, set_learning_rate


def parameters(*names):
    rng = np.random.default_rng(0)
    return [Parameter(Tensor(rng.standard_normal((3, 2)).astype(np.float32)), name=name) for name in names]


def test_weights_decay_and_norms_biases_and_modulation_do_not():
    assert is_decayed("blocks.0.self_attn.q.weight")
    for name in ("blocks.0.self_attn.q.bias", "blocks.0.norm3.weight", "blocks.0.modulation"):
        assert not is_decayed(name)


@pytest.mark.parametrize("fused", [False, True])
def test_the_optimiser_is_adamw_with_bias_correction(fused, monkeypatch):
    monkeypatch.setattr("ospnext_ms.training.optimizer.on_ascend", lambda: fused)
    weight, bias = parameters("x.weight", "x.bias")
    start = {p.name: p.asnumpy().astype(np.float64) for p in (weight, bias)}
    optimizer = make_optimizer([bias, weight], betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    rng = np.random.default_rng(1)
    moments = {name: [0.0, 0.0] for name in start}
    for step in range(3):
        rate = 0.01 * (step + 1)
        set_learning_rate(optimizer, rate)
        gradients = [rng.standard_normal((3, 2)).astype(np.float32) for _ in optimizer.parameters]
        for chunk, values in zip(optimizer.chunks, in_chunks(map(Tensor, gradients)), strict=True):
            if fused:
                chunk([value / 4 for value in values], Tensor(4.0))
            else:
                chunk(values)
        for parameter, gradient in zip(optimizer.parameters, gradients, strict=True):
            name = parameter.name
            m = moments[name][0] = 0.9 * moments[name][0] + 0.1 * gradient
            v = moments[name][1] = 0.95 * moments[name][1] + 0.05 * gradient.astype(np.float64) ** 2
            m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.95 ** (step + 1))
            decay = 0.1 if name == "x.weight" else 0.0
            start[name] = start[name] * (1 - rate * decay) - rate * m_hat / (np.sqrt(v_hat) + 1e-8)
    for parameter in (weight, bias):
        np.testing.assert_allclose(parameter.asnumpy(), start[parameter.name], rtol=2e-5, atol=1e-6)


def test_the_cosine_warms_up_and_ends_low():
    section = LearningRateSection(type="CosineWithWarmUpLR", learning_rate=1e-3, warmup_steps=4, lr_end=1e-5)
    rates = list(map(make_schedule(section, 40), range(40)))
    np.testing.assert_allclose(rates[:4], [2.5e-4, 5e-4, 7.5e-4, 1e-3], rtol=1e-6)
    assert (np.diff(rates[4:]) < 0).all()
    assert rates[-1] == pytest.approx(1e-5, rel=0.3)


def test_the_constant_schedule_stays_at_its_rate():
    section = LearningRateSection(type="ConstantWarmUpLR", learning_rate=1e-3, warmup_steps=2)
    rates = list(map(make_schedule(section, 40), (0, 1, 2, 39)))
    np.testing.assert_allclose(rates, [5e-4, 1e-3, 1e-3, 1e-3], rtol=1e-6)
