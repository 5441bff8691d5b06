"""The order of training: every sample once an epoch, one bucket a step, nothing but seed and step in it."""

from collections import Counter

import pytest

from ospnext_ms.data.order import EpochOrder


@pytest.mark.parametrize(("sizes", "global_batch"), [([7], 3), ([10, 4, 1], 4), ([3, 0, 2], 8), ([16, 8], 4), ([1], 5)])
def test_every_epoch_visits_every_sample_once(sizes, global_batch):
    order = EpochOrder(sizes, global_batch, seed=3)
    # After so many epochs every bucket's stream ends with a whole batch.
    steps = order.first_step(global_batch)
    visits = Counter()
    for step in range(steps):
        bucket, places = order.batch(step)
        assert len(places) == global_batch
        visits.update((bucket, epoch, place) for epoch, place in places)
    expected = {(bucket, epoch, place) for bucket, size in enumerate(sizes) for epoch in range(global_batch)
                for place in range(size)}
    assert set(visits) == expected
    assert set(visits.values()) == {1}


def test_epochs_and_their_steps():
    order = EpochOrder([10, 4, 1], 4, seed=0)
    places = [order.locate(step) for step in range(order.first_step(40))]
    assert places == sorted(places)
    for step, (epoch, inside) in enumerate(places):
        assert step == order.first_step(epoch) + inside
        assert step < order.first_step(epoch + 1)
        # What is left over from an epoch is visited first in the next one, so a batch never lags by a whole epoch
        # where its bucket fills one.
        bucket, visited = order.batch(step)
        if order.bucket_sizes[bucket] >= 4:
            assert {visit for visit, _ in visited} <= {epoch - 1, epoch}


def test_any_step_can_be_asked_for_first():
    walked = EpochOrder([9, 5], 4, seed=1)
    batches = [walked.batch(step) for step in range(60)]
    assert [EpochOrder([9, 5], 4, seed=1).batch(step) for step in reversed(range(60))] == batches[::-1]


def test_seed_and_epoch_change_the_order():
    def first_epoch(seed, epoch):
        order = EpochOrder([64], 8, seed)
        first = order.first_step(epoch)
        return [[place for _, place in order.batch(step)[1]] for step in range(first, first + 8)]

    assert first_epoch(0, 0) != first_epoch(1, 0)
    assert first_epoch(0, 0) != first_epoch(0, 1)


def test_buckets_are_mixed_inside_an_epoch():
    order = EpochOrder([400, 400], 4, seed=0)
    buckets = [order.batch(step)[0] for step in range(200)]
    changes = sum(a != b for a, b in zip(buckets, buckets[1:], strict=False))
    # A fair shuffle of 100 + 100 changes about 100 times; one after the other would change once.
    assert 70 < changes < 130
    assert Counter(buckets) == {0: 100, 1: 100}


def test_bad_arguments():
    with pytest.raises(ValueError, match="no samples"):
        EpochOrder([0, 0], 4, 0)
    with pytest.raises(ValueError, match="global batch is 0"):
        EpochOrder([4], 0, 0)
    with pytest.raises(ValueError, match="step is -1"):
        EpochOrder([4], 1, 0).batch(-1)
