"""Every name that a configuration may give is one that the code knows."""

from typing import get_args

import pytest

from ospnext_ms.config.sections import ComputeDtype
from ospnext_ms.diffusion.choices import NoiseKind, SamplerName, WindowStrategy
from ospnext_ms.diffusion.flow import inference_sigmas
from ospnext_ms.diffusion.sampler import make_sampler, noise_std
from ospnext_ms.diffusion.windows import window_start
from ospnext_ms.runtime import DTYPES


@pytest.mark.parametrize("name", get_args(SamplerName))
def test_samplers(name):
    assert len(make_sampler(name, 3, 2.0).timesteps) == 3


@pytest.mark.parametrize("kind", get_args(NoiseKind))
def test_noise_levels(kind):
    assert noise_std(kind, 0.5, inference_sigmas(4, 1.0)) > 0


@pytest.mark.parametrize("strategy", get_args(WindowStrategy))
def test_windows(strategy):
    assert 0 <= window_start(strategy, 2, 5, 8, 11, 0) < 6


def test_dtypes():
    assert set(DTYPES) == set(get_args(ComputeDtype))
