"""UniPC against diffusers' scheduler, against exact solutions and against Euler."""

import numpy as np
import pytest
from mindspore import Tensor

from ospnext_ms.diffusion.sampler import make_sampler
from ospnext_ms.diffusion.unipc import UniPCSampler
from tests.support import toy
from tests.support.compare import relative_error
from tests.support.samplers import sample, sample_with_diffusers

NOISE = np.random.default_rng(0).standard_normal((2, 4, 3, 6, 6)).astype(np.float32)


def diffusers_scheduler(num_steps, shift):
    """Its own schedule begins elsewhere, so it is given Wan's unshifted one, which it shifts and rounds to fp32."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference for UniPC")
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2, solver_type="bh2")
    scheduler.set_timesteps(sigmas=np.linspace(UniPCSampler.SIGMA_MAX, 0, num_steps + 1)[:-1])
    # Looked up by timestep, a step would be found wrongly where truncation makes two timesteps equal.
    scheduler.set_begin_index(0)
    return scheduler


@pytest.mark.parametrize(("num_steps", "shift"), [(1, 5.0), (2, 5.0), (3, 5.0), (5, 5.0), (10, 8.0), (20, 3.0),
                                                  (50, 5.0), (50, 8.0), (50, 1.0), (200, 7.0)])
def test_matches_diffusers(num_steps, shift):
    sampler, scheduler = make_sampler("unipc", num_steps, shift), diffusers_scheduler(num_steps, shift)
    assert sampler.timesteps == scheduler.timesteps.tolist()
    np.testing.assert_allclose(sampler.sigmas, scheduler.sigmas.numpy(), atol=1e-7)
    out = sample(sampler, toy.wiggly_velocity, NOISE, np.array(sampler.timesteps) / 1000)
    assert relative_error(out, sample_with_diffusers(scheduler, toy.wiggly_velocity, NOISE)) < 1e-5


def test_schedule_of_wan():
    sampler = make_sampler("unipc", 50, 5.0)
    assert len(sampler.timesteps) == 50
    assert sampler.sigmas.shape == (51,)
    assert sampler.sigmas[-1] == 0
    assert (sampler.sigmas < 1).all()
    assert sampler.sigmas[0] == pytest.approx(5 * 0.999 / (1 + 4 * 0.999), abs=1e-7)
    assert sampler.timesteps[:3] == [999.0, 995.0, 991.0]
    assert all(t == int(1000 * s) for t, s in zip(sampler.timesteps, sampler.sigmas, strict=False))


def test_timesteps_on_an_integer_are_not_truncated_below_it():
    """Unshifted, thirds of 999 are 666 and 333; with 0.999 in float64 they would come out as 665 and 332."""
    assert make_sampler("unipc", 3, 1.0).timesteps == [999.0, 666.0, 333.0]


def errors_against_solution(name, steps):
    errors = []
    for num_steps in steps:
        sampler = make_sampler(name, num_steps, 3.0)
        x = toy.solution(NOISE.astype(np.float64), 1.0, sampler.sigmas[0])
        out = sample(sampler, toy.velocity, x.astype(np.float32), sampler.sigmas)
        errors.append(relative_error(out, toy.solution(x, sampler.sigmas[0], 0.0)))
    return np.array(errors)


def test_converges_faster_than_euler():
    steps = [8, 16, 32]
    euler, unipc = errors_against_solution("euler", steps), errors_against_solution("unipc", steps)
    assert (unipc < euler).all()
    euler_order, unipc_order = np.log2(euler[:-1] / euler[1:]), np.log2(unipc[:-1] / unipc[1:])
    assert (abs(euler_order - 1) < 0.3).all()
    assert (unipc_order > 2).all()


def test_reset_starts_anew():
    sampler = make_sampler("unipc", 5, 3.0)
    first = sample(sampler, toy.wiggly_velocity, NOISE, sampler.sigmas)
    sampler.reset()
    np.testing.assert_array_equal(sample(sampler, toy.wiggly_velocity, NOISE, sampler.sigmas), first)


def test_steps_out_of_order():
    sampler = make_sampler("unipc", 2, 3.0)
    x = Tensor(NOISE)
    with pytest.raises(ValueError, match="step 1 was called where step 0 of 2 is due"):
        sampler.step(1, x, x)
    sampler.step(0, x, x)
    with pytest.raises(ValueError, match=r"reset\(\)"):
        sampler.step(0, x, x)
    sampler.step(1, x, x)
    with pytest.raises(ValueError, match="step 2 was called"):
        sampler.step(2, x, x)
