"""The clipper against its definition, written out step by step."""

import math

import pytest

from ospnext_ms.training.clipping import PATIENCE, AdaptiveClipper


def test_the_first_norm_starts_the_mean():
    small, large = AdaptiveClipper(), AdaptiveClipper()
    assert small(0.1) == 1.0
    assert small.mean == pytest.approx(0.99 * 0.3 + 0.01 * 0.1)
    assert small.variance == pytest.approx(0.01 * (0.1 - 0.3) ** 2)
    assert large(4.0) == 1 / 4
    assert (large.mean, large.variance, large.threshold) == (1.0, 0.0, 1.0)


def test_a_usual_norm_passes_and_enters_and_an_unusual_one_is_scaled_and_stays_out():
    clipper = AdaptiveClipper(decay=0.9, deviations=2.0, mean=2.0, variance=0.25)
    assert clipper.threshold == 3.0
    assert clipper(6.0) == 0.5
    assert (clipper.mean, clipper.variance) == (2.0, 0.25)
    assert clipper(3.0) == 1.0
    assert clipper.mean == pytest.approx(0.9 * 2 + 0.1 * 3)
    assert clipper.variance == pytest.approx(0.9 * 0.25 + 0.1 * 1.0)
    assert clipper.threshold == pytest.approx(2.1 + 2 * math.sqrt(0.325))


def test_the_threshold_follows_norms_that_grow_slowly():
    clipper = AdaptiveClipper()
    factors = [clipper(0.5 * 1.001**i) for i in range(500)]
    assert factors[0] == 1.0
    assert min(factors[100:]) > 0.9
    assert 0.5 < clipper.mean < 0.5 * 1.001**500


def test_a_norm_of_0_starts_nothing():
    """Or else the threshold would be 0 for ever, and no weight would move again."""
    clipper = AdaptiveClipper()
    assert [clipper(0.0) for _ in range(3)] == [1.0] * 3
    assert clipper.threshold is None
    assert clipper(0.1) == 1.0
    fresh = AdaptiveClipper()
    fresh(0.1)
    assert clipper.state() == fresh.state()
    frozen = AdaptiveClipper()
    frozen.restore({"mean": 0.0, "variance": 0.0})
    assert frozen(0.1) == 1.0


@pytest.mark.parametrize("norm", [1e-9, 4.0, 50.0])
def test_a_threshold_that_rejects_everything_grows(norm):
    clipper = AdaptiveClipper()
    clipper(1e-12)
    for _ in range(PATIENCE):
        assert clipper(norm) < 1
    before = clipper.threshold
    factors = [clipper(norm) for _ in range(400)]
    assert clipper.threshold > before
    assert factors[-1] == 1.0
    assert clipper.mean == pytest.approx(norm, rel=0.3)


def test_few_rejected_norms_in_a_row_move_nothing():
    clipper, reference = (AdaptiveClipper(mean=1.0, variance=0.01) for _ in range(2))
    for _ in range(5):
        for _ in range(PATIENCE):
            assert clipper(1e6) == clipper.threshold / 1e6
        assert clipper(1.1) == reference(1.1) == 1.0
        assert (clipper.mean, clipper.variance) == (reference.mean, reference.variance)


def test_state_in_a_run_of_rejected_norms_goes_round():
    clipper, other = AdaptiveClipper(), AdaptiveClipper()
    for _ in range(PATIENCE + 3):
        clipper(7.0)
    other.restore(clipper.state())
    assert [clipper(7.0) for _ in range(100)] == [other(7.0) for _ in range(100)]


def test_state_goes_round_and_settings_stay():
    clipper = AdaptiveClipper()
    for norm in (0.3, 0.4, 9.0, 0.2):
        clipper(norm)
    other = AdaptiveClipper(deviations=5.0)
    other.restore(clipper.state())
    assert (other.mean, other.variance, other.deviations) == (clipper.mean, clipper.variance, 5.0)


@pytest.mark.parametrize("norm", [float("nan"), float("inf"), -1.0])
def test_a_norm_that_is_none_is_an_error(norm):
    with pytest.raises(ValueError, match="norm"):
        AdaptiveClipper()(norm)
