"""Micro-batches and minibatches of a policy update: every pair once, weights that make the mean over all pairs."""

import numpy as np
import pytest

from ospnext_ms.post_training.update import Experience, loss_inputs, minibatches_of_epoch, plan_micro_batches


def experience(videos, steps):
    rng = np.random.default_rng(1)
    return Experience(rng.standard_normal((steps + 1, videos, 2)), rng.standard_normal((videos, 3)),
                      rng.standard_normal(3), np.arange(3.0 * steps).reshape(steps, 3).astype(np.float32),
                      np.arange(1.0, videos + 1, dtype=np.float32))


@pytest.mark.parametrize("data_size", [1, 2, 4])
def test_micro_batches_hold_every_used_pair_once(data_size):
    used = np.array([True, False, True, True] + [False] * 4 + [True] * 4 + [False, True, True, True])
    ranks = [plan_micro_batches(used, rank, data_size, 3, 4, 0, 0) for rank in range(data_size)]
    assert len({len(batches) for batches in ranks}) == 1
    found = []
    for rank, batches in enumerate(ranks):
        for batch in batches:
            videos = batch.videos[batch.real] + rank * 16 // data_size
            found += list(zip(videos.tolist(), batch.steps[batch.real].tolist(), strict=True))
    assert sorted(found) == [(v, s) for v in np.flatnonzero(used) for s in range(3)]
    for together in zip(*ranks, strict=True):
        assert {batch.pairs for batch in together} == {sum(int(batch.real.sum()) for batch in together)}


@pytest.mark.parametrize("data_size", [1, 2])
def test_weights_make_the_mean_over_all_pairs(data_size):
    """The mean over slots, micro-batches and ranks of weight * value is the mean of the value over all pairs."""
    used, values = np.array([True] * 5 + [False] * 3), np.arange(1.0, 9.0)
    total = 0.0
    for rank in range(data_size):
        batches = plan_micro_batches(used, rank, data_size, 3, 4, 0, 0)
        for i, batch in enumerate(batches):
            batches[i] = type(batch)(batch.videos, batch.steps, batch.real, batch.pairs, np.zeros(4, np.float32))
        own = experience(8 // data_size, 3)
        inputs = loss_inputs(own, batches, data_size, True)
        numbers = values.reshape(data_size, -1)[rank]
        total += np.mean([(weights * numbers[batch.videos]).mean() for batch, (*_, weights, _, _) in
                          zip(batches, inputs, strict=True)]) / data_size
    assert total == pytest.approx(values[:5].mean(), rel=1e-6)


def test_epochs_deal_out_the_same_micro_batches_in_another_order():
    batches = plan_micro_batches(np.ones(16, bool), 0, 1, 2, 4, 0, 0)
    epochs = [minibatches_of_epoch(batches, 3, 0, 0, epoch) for epoch in range(2)]
    assert [len(minibatch) for minibatch in epochs[0]] == [3, 3, 2]
    flat = [[id(batch) for minibatch in epoch for batch in minibatch] for epoch in epochs]
    assert sorted(flat[0]) == sorted(flat[1]) == sorted(map(id, batches))
    assert flat[0] != flat[1]


def test_inputs_of_a_pair():
    own = experience(4, 3)
    x, x_next, text, negative, sigma, sigma_next, std = own.step_inputs(np.array([2, 0]), np.array([1, 2]))
    np.testing.assert_array_equal(x, [own.samples[1, 2], own.samples[2, 0]])
    np.testing.assert_array_equal(x_next, [own.samples[2, 2], own.samples[3, 0]])
    np.testing.assert_array_equal(text, own.texts[[2, 0]])
    np.testing.assert_array_equal(negative, [own.negative] * 2)
    assert (sigma.tolist(), sigma_next.tolist(), std.tolist()) == ([3, 6], [4, 7], [5, 8])
