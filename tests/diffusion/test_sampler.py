"""ODE and SDE steps against NumPy in float64, and the marginals the SDE must keep."""

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ospnext_ms.diffusion.flow import inference_sigmas
from ospnext_ms.diffusion.sampler import euler_step, guided_velocity, make_sampler, noise_std, sde_step
from tests.support import toy

SHAPE = (3, 4, 5, 8, 10)
LEVELS = {"first": (1.0, 0.97, 1.0), "middle": (0.7, 0.61, 0.5), "late": (0.2, 0.05, 0.35)}


def arrays(count, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def reference_mean(v, x, sigma, sigma_next, std):
    dt = sigma_next - sigma
    return x * (1 + std**2 / (2 * sigma) * dt) + v * (1 + std**2 * (1 - sigma) / (2 * sigma)) * dt


def reference_step(v, x, sigma, sigma_next, std, noise):
    """x', log-probability [B] and mean in float64."""
    v, x, noise = (a.astype(np.float64) for a in (v, x, noise))
    mean, step_std = reference_mean(v, x, sigma, sigma_next, std), std * math.sqrt(sigma - sigma_next)
    log_density = -0.5 * noise**2 - math.log(step_std) - 0.5 * math.log(2 * math.pi)
    return mean + step_std * noise, log_density.mean(tuple(range(1, x.ndim))), mean


def assert_close(actual, expected, tolerance=1e-6):
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == ms.float32
        np.testing.assert_allclose(a.asnumpy(), e, rtol=tolerance, atol=tolerance)


def test_euler_step():
    v, x = arrays(2)
    out = euler_step(Tensor(v), Tensor(x), 0.8, 0.75).asnumpy()
    np.testing.assert_allclose(out, x.astype(np.float64) - 0.05 * v, atol=1e-6)


def test_euler_step_takes_a_level_per_sample():
    v, x = arrays(2)
    sigma, sigma_next = Tensor([1.0, 0.5, 0.25], ms.float32), Tensor([0.75, 0.25, 0.0], ms.float32)
    out = euler_step(Tensor(v), Tensor(x), sigma, sigma_next).asnumpy()
    np.testing.assert_allclose(out, x - 0.25 * v, atol=1e-6)


def test_steps_compute_in_fp32_whatever_comes_in():
    v, x = (Tensor(a, ms.float16) for a in arrays(2))
    assert euler_step(v, x, 0.8, 0.75).dtype == ms.float32
    assert guided_velocity(v, x, 5.0).dtype == ms.float32
    expected = reference_step(v.asnumpy(), x.asnumpy(), 0.8, 0.7, 0.5, x.asnumpy())
    assert_close(sde_step(v, x, 0.8, 0.7, 0.5, noise=x), expected)


def test_guided_velocity():
    cond, uncond = arrays(2)
    out = guided_velocity(Tensor(cond), Tensor(uncond), 5.0).asnumpy()
    np.testing.assert_allclose(out, 5.0 * cond - 4.0 * uncond, atol=1e-5)
    np.testing.assert_allclose(guided_velocity(Tensor(cond), Tensor(uncond), 1.0).asnumpy(), cond, atol=1e-6)


def test_noise_std():
    sigmas = inference_sigmas(25, 7.0)
    for sigma in sigmas:
        assert noise_std("osp", sigma, sigmas) == sigma
    assert noise_std("osp", 0.5, [0.9, 0.5, 0.1]) == pytest.approx(0.1 + 0.8 * 0.5)
    assert noise_std("flow_grpo", 0.36, sigmas) == pytest.approx(0.7 * 0.75)
    assert noise_std("flow_grpo", 0.36, sigmas, eta=0.3) == pytest.approx(0.3 * 0.75)
    assert noise_std("flow_grpo", 1.0, sigmas) == pytest.approx(0.7 / math.sqrt(1 - sigmas[1]))


@pytest.mark.parametrize(("arguments", "message"), [
    (("ddpm", 0.5, [1.0, 0.0]), "'osp', 'flow_grpo'"),
    (("osp", 1.5, [1.0, 0.0]), r"sigma is 1.5.*\[0, 1\]"),
    (("osp", 0.5, [1.0]), "at least 2"),
])
def test_noise_std_invalid(arguments, message):
    with pytest.raises(ValueError, match=message):
        noise_std(*arguments)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_sde_step_against_numpy(levels):
    v, x, noise = arrays(3)
    expected = reference_step(v, x, *levels, noise)
    assert_close(sde_step(Tensor(v), Tensor(x), *levels, noise=Tensor(noise)), expected)
    on_tensors = [Tensor(level, ms.float32) for level in levels]
    rounded = [float(level.asnumpy()) for level in on_tensors]
    expected = reference_step(v, x, *rounded, noise)
    assert_close(sde_step(Tensor(v), Tensor(x), *on_tensors, noise=Tensor(noise)), expected)


def test_sde_step_takes_levels_per_sample():
    v, x, noise = arrays(3)
    sigma, sigma_next, std = (np.array(column, np.float32) for column in zip(*LEVELS.values(), strict=True))
    rows = [reference_step(*(a[i : i + 1] for a in (v, x)), float(sigma[i]), float(sigma_next[i]), float(std[i]),
                           noise[i : i + 1]) for i in range(3)]
    expected = [np.concatenate(column) for column in zip(*rows, strict=True)]
    assert_close(sde_step(*map(Tensor, (v, x, sigma, sigma_next, std)), noise=Tensor(noise)), expected)


def test_scoring_repeats_the_draw_to_the_bit():
    v, x, noise = map(Tensor, arrays(3))
    drawn = sde_step(v, x, 0.7, 0.61, 0.5, noise=noise)
    scored = sde_step(v, x, 0.7, 0.61, 0.5, prev_sample=drawn[0])
    for a, b in zip(drawn, scored, strict=True):
        np.testing.assert_array_equal(a.asnumpy(), b.asnumpy())


def test_sde_step_under_jit():
    v, x, noise = map(Tensor, arrays(3))
    levels = [Tensor(level, ms.float32) for level in LEVELS["middle"]]

    def draw(v, x, noise, sigma, sigma_next, std):
        return sde_step(v, x, sigma, sigma_next, std, noise=noise)

    def score_at_fixed_levels(v, x, prev_sample):
        return sde_step(v, x, 0.7, 0.61, 0.5, prev_sample=prev_sample)

    for step, arguments in ((draw, (v, x, noise, *levels)), (score_at_fixed_levels, (v, x, noise))):
        assert_close(ms.jit(step)(*arguments), [a.asnumpy() for a in step(*arguments)])


def test_log_prob_of_a_large_latent_stays_accurate():
    v, x, noise = arrays(3, (2, 16, 11, 60, 104))
    log_prob = sde_step(Tensor(v), Tensor(x), *LEVELS["middle"], noise=Tensor(noise))[1]
    np.testing.assert_allclose(log_prob.asnumpy(), reference_step(v, x, *LEVELS["middle"], noise)[1], atol=1e-6)


def test_log_prob_gradient_against_finite_differences():
    v, x, noise = arrays(3, (2, 2, 3, 4, 5))
    levels = LEVELS["middle"]
    observed = reference_step(v, x, *levels, noise)[0].astype(np.float32)
    weights = np.array([1.0, -2.0])

    def loss(v, x):
        log_prob = sde_step(v, x, *levels, prev_sample=Tensor(observed))[1]
        return (Tensor(weights, ms.float32) * log_prob).sum()

    def reference_loss(v, x):
        sigma, sigma_next, std = levels
        step_std = std * math.sqrt(sigma - sigma_next)
        z = (observed - reference_mean(v, x, *levels)) / step_std
        return (weights * (-0.5 * z**2 - math.log(step_std)).mean((1, 2, 3, 4))).sum()

    inputs = [v.astype(np.float64), x.astype(np.float64)]
    for mode in (lambda f: f, ms.jit):
        gradients = mode(ms.grad(loss, (0, 1)))(Tensor(v), Tensor(x))
        for position in range(2):
            gradient, h = gradients[position].asnumpy(), 1e-5
            for index in [(0, 0, 0, 0, 0), (0, 1, 2, 3, 4), (1, 0, 1, 2, 3), (1, 1, 0, 3, 1)]:
                moved = [[a.copy() for a in inputs] for _ in range(2)]
                moved[0][position][index] += h
                moved[1][position][index] -= h
                expected = (reference_loss(*moved[0]) - reference_loss(*moved[1])) / (2 * h)
                assert gradient[index] == pytest.approx(expected, rel=1e-4)


def test_drawing_is_differentiated_as_scoring():
    v, x, noise = map(Tensor, arrays(3))
    drawn = sde_step(v, x, 0.7, 0.61, 0.5, noise=noise)[0]
    through_noise = ms.grad(lambda v: sde_step(v, x, 0.7, 0.61, 0.5, noise=noise)[1].sum())(v)
    through_sample = ms.grad(lambda v: sde_step(v, x, 0.7, 0.61, 0.5, prev_sample=drawn)[1].sum())(v)
    assert np.abs(through_sample.asnumpy()).max() > 0
    np.testing.assert_array_equal(through_noise.asnumpy(), through_sample.asnumpy())


def test_without_noise_it_is_euler():
    v, x, noise = map(Tensor, arrays(3))
    euler = euler_step(v, x, 0.7, 0.61).asnumpy()
    for std in (1e-2, 1e-3, 1e-4):
        prev_sample, log_prob, mean = sde_step(v, x, 0.7, 0.61, std, noise=noise)
        assert np.abs(mean.asnumpy() - euler).max() < std**2 + 1e-6
        assert np.abs(prev_sample.asnumpy() - euler).max() < 2 * std
        assert np.isfinite(log_prob.asnumpy()).all()


def test_exactly_one_of_noise_and_prev_sample():
    v, x, noise = map(Tensor, arrays(3))
    with pytest.raises(ValueError, match="exactly one"):
        sde_step(v, x, 0.7, 0.61, 0.5)
    with pytest.raises(ValueError, match="exactly one"):
        sde_step(v, x, 0.7, 0.61, 0.5, noise=noise, prev_sample=x)


@pytest.mark.parametrize("levels", [(0.5, 0.5, 0.1), (0.5, 0.6, 0.1), (0.0, -0.1, 0.1), (1.1, 0.5, 0.1)])
def test_levels_that_are_no_step(levels):
    v, x, noise = map(Tensor, arrays(3))
    with pytest.raises(ValueError, match="sigma"):
        sde_step(v, x, *levels, noise=noise)


@pytest.mark.parametrize("std", [0.0, -0.1, float("nan")])
def test_std_of_no_density(std):
    v, x, noise = map(Tensor, arrays(3))
    with pytest.raises(ValueError, match="std is"):
        sde_step(v, x, 0.7, 0.6, std, noise=noise)


START, END = 0.8, 0.2


def steps_between(kind, num_steps):
    """(sigma, sigma_next, std) of the steps from START to END in the unshifted schedule of `num_steps`."""
    sigmas = inference_sigmas(num_steps, 1.0)
    used = sigmas[round((1 - START) * num_steps) : round((1 - END) * num_steps) + 1]
    np.testing.assert_allclose(used[[0, -1]], [START, END])
    return [(a, b, noise_std(kind, a, sigmas)) for a, b in zip(used[:-1], used[1:], strict=True)]


def exact_moments(kind, num_steps):
    """Mean and variance at END of what the discrete SDE draws: on the toy every step is linear in x."""
    mean, variance = toy.marginal(START)
    for sigma, sigma_next, std in steps_between(kind, num_steps):
        at_0, at_1 = (reference_mean(toy.velocity(x, sigma), x, sigma, sigma_next, std) for x in (0.0, 1.0))
        mean = at_0 + (at_1 - at_0) * mean
        variance = (at_1 - at_0) ** 2 * variance + std**2 * (sigma - sigma_next)
    return mean, variance


@pytest.mark.parametrize("kind", ["osp", "flow_grpo"])
def test_sde_keeps_the_marginals_of_the_flow(kind):
    """A method of order 1: the mean runs along a straight line, the variance errs half as much with twice the steps."""
    true_mean, true_variance = toy.marginal(END)
    means, variances = np.transpose([exact_moments(kind, num_steps) for num_steps in (50, 100, 200, 400)])
    np.testing.assert_allclose(means, true_mean, atol=1e-12)
    errors = np.abs(variances / true_variance - 1)
    np.testing.assert_allclose(errors[1:] / errors[:-1], 0.5, atol=0.05)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("kind", ["osp", "flow_grpo"])
def test_sde_samples_have_the_moments(kind):
    """n draws: their mean errs by std / sqrt(n), their variance by variance * sqrt(2 / n); bounds are 5 of these."""
    n, num_steps = 40_000, 20
    rng = np.random.default_rng(1)
    mean, variance = toy.marginal(START)
    x = Tensor((mean + math.sqrt(variance) * rng.standard_normal((1, n))).astype(np.float32))
    for sigma, sigma_next, std in steps_between(kind, num_steps):
        noise = Tensor(rng.standard_normal((1, n)).astype(np.float32))
        x = sde_step(toy.velocity(x, float(sigma)), x, sigma, sigma_next, std, noise=noise)[0]
    mean, variance = exact_moments(kind, num_steps)
    samples = x.asnumpy().astype(np.float64)
    assert abs(samples.mean() - mean) < 5 * math.sqrt(variance / n)
    assert abs(samples.var() / variance - 1) < 5 * math.sqrt(2 / n)


def test_euler_sampler():
    sampler = make_sampler("euler", 4, 3.0)
    np.testing.assert_array_equal(sampler.sigmas, inference_sigmas(4, 3.0))
    assert sampler.timesteps == pytest.approx([1000, 900, 750, 500])
    v, x = map(Tensor, arrays(2))
    expected = euler_step(v, x, sampler.sigmas[1], sampler.sigmas[2]).asnumpy()
    for _ in range(2):
        np.testing.assert_array_equal(sampler.step(1, v, x).asnumpy(), expected)
        sampler.reset()


@pytest.mark.parametrize(("arguments", "message"), [
    (("heun", 4, 3.0), r"'euler', 'unipc', 'dpm\+\+'"),
    (("euler", 0, 3.0), "num_steps is 0"),
    (("unipc", 0, 3.0), "num_steps is 0"),
    (("euler", 4, 0.0), "shift is 0.0"),
    (("unipc", 4, -1.0), "shift is -1.0"),
])
def test_make_sampler_invalid(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_sampler(*arguments)


def score_on_tensors(v, x, prev_sample, sigma, sigma_next, std):
    return sde_step(v, x, sigma, sigma_next, std, prev_sample=prev_sample)[1]


def test_log_prob_repeats_to_the_bit():
    """MindSpore tries other numbers of threads in the first calls of a kernel; the result must not depend on it."""
    v, x, noise = map(Tensor, arrays(3, (4, 2, 3, 4, 5)))
    columns = ([0.9, 0.7, 0.5, 0.3], [0.8, 0.6, 0.4, 0.2], [0.37, 0.7, 0.5, 0.3])
    levels = [Tensor(values, ms.float32) for values in columns]
    compiled = ms.jit(score_on_tensors)
    results = np.stack([compiled(v, x, noise, *levels).asnumpy() for _ in range(30)])
    assert (results == results[0]).all()
