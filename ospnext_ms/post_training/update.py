"""The policy update of an iteration: scores the trajectories on the training path, then follows the clipped loss.

Work is (video, step) pairs in micro-batches, which stay the same from the scoring to the last epoch: a matrix product
may round a row differently in other company. It is planned for all processes at once, so that every one of them makes
the same number of calls of the network, which collectives inside need, and divides by the same number of pairs.
"""

from dataclasses import dataclass, replace

import numpy as np
from mindspore import Tensor

_SHUFFLE_STREAM, _EPOCH_STREAM = 0x5BFF, 0xE90C


@dataclass(frozen=True)
class Experience:
    """What an update learns from: this process's n videos, S steps of the window.

    samples [S + 1, n, 16, T, h, w]; texts [n, L, C]; negative [L, C]; levels [S, 3] (sigma, sigma_next, std);
    advantages [n].
    """

    samples: np.ndarray
    texts: np.ndarray
    negative: np.ndarray
    levels: np.ndarray
    advantages: np.ndarray

    def step_inputs(self, videos, steps):
        """Inputs of StepLogProb for pairs: x, x_next, text, negative, sigma, sigma_next, std."""
        negative = np.stack([self.negative] * len(videos))
        return (self.samples[steps, videos], self.samples[np.add(steps, 1), videos], self.texts[videos], negative,
                *np.ascontiguousarray(self.levels[steps].T))


@dataclass(frozen=True)
class MicroBatch:
    """Pairs that always go through the network together, so that their log-probabilities repeat to the bit.

    videos and steps int [B]; real bool [B], False for pairs that only fill up; pairs: real ones on all processes.
    old_log_probs [B] and reference_means [B, 16, T, h, w] (None without KL) are of the training path.
    """

    videos: np.ndarray
    steps: np.ndarray
    real: np.ndarray
    pairs: int
    old_log_probs: np.ndarray | None = None
    reference_means: np.ndarray | None = None


def levels_of(schedule):
    """[S, 3] of (sigma, sigma_next, std) of a RolloutSchedule's window, fp32."""
    return np.stack([schedule.window[:-1], schedule.window[1:], schedule.stds], 1).astype(np.float32)


def plan_micro_batches(used, data_rank, data_size, steps, size, seed, iteration):
    """The MicroBatches of this rank, as many as the busiest rank has.

    `used`: bool [all videos], in the order of ranks; each rank's own are shuffled, all steps of a video together.
    """
    per_rank = np.asarray(used).reshape(data_size, -1)
    counts = per_rank.sum(1) * steps
    videos = np.flatnonzero(per_rank[data_rank])
    np.random.default_rng([seed, _SHUFFLE_STREAM, iteration, data_rank]).shuffle(videos)
    pairs = np.array([(video, step) for video in videos for step in range(steps)] or [(0, 0)])
    planned = []
    for start in range(0, counts.max(), size):
        slots = np.arange(start, start + size)
        chosen = pairs[np.minimum(slots, len(pairs) - 1)]
        together = int(np.clip(counts - start, 0, size).sum())
        planned.append(MicroBatch(chosen[:, 0], chosen[:, 1], slots < counts[data_rank], together))
    return planned


def score(step_log_prob, experience, micro_batches, adapters, with_kl):
    """The micro-batches with their old log-probabilities and the frozen network's means.

    Args:
        step_log_prob: compiled StepLogProb. adapters: models.lora.Adapters of its network.
    """
    scored = []
    for batch in micro_batches:
        inputs = [Tensor(array) for array in experience.step_inputs(batch.videos, batch.steps)]
        log_probs, means = step_log_prob(*inputs)[0].asnumpy(), None
        if with_kl:
            with adapters.disabled():
                means = step_log_prob(*inputs)[1].asnumpy()
        scored.append(replace(batch, old_log_probs=log_probs, reference_means=means))
    return scored


def minibatches_of_epoch(micro_batches, count, seed, iteration, epoch):
    """The micro-batches, shuffled as on every other rank, dealt out to `count` optimiser steps (fewer if too few)."""
    order = np.arange(len(micro_batches))
    np.random.default_rng([seed, _EPOCH_STREAM, iteration, epoch]).shuffle(order)
    return [[micro_batches[i] for i in part] for part in np.array_split(order, min(count, len(order)))]


def loss_inputs(experience, minibatch, data_size, is_fresh):
    """Inputs of PolicyLoss for every micro-batch of an optimiser step.

    `is_fresh`: no update has been made since the scoring. The weights make the mean over micro-batches, slots and
    processes the mean over all real pairs of all processes.
    """
    slots = sum(len(batch.real) for batch in minibatch) * data_size
    weight = slots / sum(batch.pairs for batch in minibatch)
    inputs = []
    for batch in minibatch:
        pairs = experience.step_inputs(batch.videos, batch.steps)
        means = pairs[0] if batch.reference_means is None else batch.reference_means
        weights = np.where(batch.real, weight, 0).astype(np.float32)
        inputs.append((*pairs, batch.old_log_probs, experience.advantages[batch.videos], weights, means,
                       np.array(is_fresh, np.float32)))
    return inputs
