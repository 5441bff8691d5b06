"""DPM-Solver++ against diffusers' scheduler, against an exact solution and against Euler."""

import numpy as np
import pytest

from ospnext_ms.diffusion.sampler import make_sampler, sampler_from_sigmas
from tests.support import toy
from tests.support.compare import relative_error
from tests.support.samplers import sample, sample_with_diffusers

NOISE = np.random.default_rng(0).standard_normal((2, 4, 3, 6, 6)).astype(np.float32)


def diffusers_scheduler(sampler):
    """Its own schedule for flows begins below 1 and ends elsewhere, so it is given the one that Wan gives it."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference for DPM-Solver++")
    torch = pytest.importorskip("torch")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2, algorithm_type="dpmsolver++",
        solver_type="midpoint", final_sigmas_type="zero")
    scheduler.set_timesteps(len(sampler.timesteps))
    scheduler.sigmas = torch.from_numpy(sampler.sigmas.astype(np.float32))
    scheduler.timesteps = torch.tensor(sampler.timesteps, dtype=torch.int64)
    # Looked up by timestep, a step would be found wrongly where truncation makes two timesteps equal.
    scheduler.set_begin_index(0)
    return scheduler


@pytest.mark.parametrize("shift", [1.0, 5.0, 7.0])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 25, 50])
def test_matches_diffusers(num_steps, shift):
    sampler = make_sampler("dpm++", num_steps, shift)
    out = sample(sampler, toy.wiggly_velocity, NOISE, np.array(sampler.timesteps) / 1000)
    expected = sample_with_diffusers(diffusers_scheduler(sampler), toy.wiggly_velocity, NOISE)
    assert relative_error(out, expected) < 1e-5


def test_schedule_of_wan():
    sampler = make_sampler("dpm++", 50, 5.0)
    assert sampler.sigmas[0] == 1
    assert sampler.sigmas[-1] == 0
    assert sampler.sigmas[1] == pytest.approx(5 * 0.98 / (1 + 4 * 0.98))
    assert sampler.timesteps[:3] == [1000.0, 995.0, 991.0]
    assert len(sampler.timesteps) == 50


def test_converges_with_order_two():
    errors = {}
    for name in ("euler", "dpm++"):
        # At levels that are not rounded: a rounded timestep is an error that no step removes.
        samplers = [sampler_from_sigmas(name, make_sampler("dpm++", steps, 3.0).sigmas) for steps in (8, 16, 32)]
        exact = toy.solution(NOISE.astype(np.float64), 1.0, 0.0)
        errors[name] = np.array([relative_error(sample(sampler, toy.velocity, NOISE, sampler.sigmas), exact)
                                 for sampler in samplers])
    assert (errors["dpm++"] < errors["euler"]).all()
    assert (np.log2(errors["dpm++"][:-1] / errors["dpm++"][1:]) > 1.7).all()


@pytest.mark.parametrize("sigmas", [[0.5, 0.7, 0.0], [1.2, 0.5, 0.0], [0.5, 0.1], [0.0]])
def test_levels_that_do_not_fall_to_zero(sigmas):
    with pytest.raises(ValueError, match="they must fall from 1 to 0"):
        sampler_from_sigmas("dpm++", sigmas)
