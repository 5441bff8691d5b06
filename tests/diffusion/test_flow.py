"""Noise schedules against closed forms and the figures of the paper."""

import subprocess
import sys

import numpy as np
import pytest

from ospnext_ms.diffusion.flow import (
    add_noise,
    dynamic_shift,
    inference_sigmas,
    shift_sigmas,
    training_sigmas,
    velocity_target,
)

RNG = np.random.default_rng(0)


def test_schedules_need_no_mindspore():
    code = "import sys, ospnext_ms.diffusion.flow; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_inference_sigmas_as_osp_next_serves():
    sigmas = inference_sigmas(50, 7.0)
    assert sigmas.shape == (51,)
    assert sigmas.dtype == np.float64
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (np.diff(sigmas) < 0).all()
    assert sigmas[25] == pytest.approx(7 * 0.5 / (1 + 6 * 0.5))
    assert sigmas[49] == pytest.approx(7 * 0.02 / (1 + 6 * 0.02))


def test_shift_is_the_signal_to_noise_ratio_over_its_value():
    u = RNG.uniform(0.01, 0.99, 100)
    shifted = shift_sigmas(u, 5.0)
    np.testing.assert_allclose(shifted / (1 - shifted), 5.0 * u / (1 - u), rtol=1e-12)
    np.testing.assert_allclose(shift_sigmas(shifted, 0.2), u, rtol=1e-12)


def test_training_sigmas():
    u = RNG.uniform(0, 1, (3, 4))
    np.testing.assert_array_equal(training_sigmas(u, 1.0), u)
    np.testing.assert_allclose(training_sigmas(u, 3.0), 3 * u / (1 + 2 * u), rtol=1e-14)
    np.testing.assert_array_equal(training_sigmas([0.0, 1.0], 3.0), [0.0, 1.0])


@pytest.mark.parametrize("u", [-0.001, 1.001, np.nan])
def test_training_sigmas_outside_the_unit_interval(u):
    with pytest.raises(ValueError, match=r"u holds .*\[0, 1\]"):
        training_sigmas([0.5, u], 1.0)


def test_dynamic_shift():
    assert dynamic_shift(256) == pytest.approx(np.exp(0.5))
    assert dynamic_shift(4096) == pytest.approx(np.exp(1.15))
    assert dynamic_shift(45 * 80) == pytest.approx(2.90, abs=0.005)


@pytest.mark.parametrize("tokens", [0, -5, float("nan")])
def test_dynamic_shift_without_tokens(tokens):
    with pytest.raises(ValueError, match="tokens_per_frame"):
        dynamic_shift(tokens)


@pytest.mark.parametrize("shift", [0, -1, float("inf"), float("nan")])
def test_invalid_shift(shift):
    with pytest.raises(ValueError, match="finite number above 0"):
        inference_sigmas(10, shift)
    with pytest.raises(ValueError, match="finite number above 0"):
        training_sigmas([0.5], shift)


@pytest.mark.parametrize("num_steps", [0, -3, 2.5, "4"])
def test_invalid_num_steps(num_steps):
    with pytest.raises(ValueError, match="whole number of at least 1"):
        inference_sigmas(num_steps, 1.0)


def test_add_noise_runs_along_the_velocity():
    x0, noise = RNG.standard_normal((2, 3, 4, 5, 6))
    sigma = np.array([0.0, 0.3, 1.0])
    x = add_noise(x0, noise, sigma)
    np.testing.assert_array_equal(x[0], x0[0])
    np.testing.assert_array_equal(x[2], noise[2])
    step = 0.125
    moved = add_noise(x0[:2], noise[:2], sigma[:2] + step)
    np.testing.assert_allclose(moved, x[:2] + step * velocity_target(x0, noise)[:2], rtol=0, atol=1e-14)


@pytest.mark.framework
def test_add_noise_of_tensors():
    ms = pytest.importorskip("mindspore")
    x0, noise = RNG.standard_normal((2, 3, 4, 5, 6)).astype(np.float32)
    sigma = np.array([0.1, 0.5, 0.9], np.float32)
    expected = add_noise(x0, noise, sigma)
    tensors = [ms.Tensor(a) for a in (x0, noise, sigma)]
    np.testing.assert_allclose(add_noise(*tensors).asnumpy(), expected, atol=1e-6)
    np.testing.assert_allclose(ms.jit(add_noise)(*tensors).asnumpy(), expected, atol=1e-6)
