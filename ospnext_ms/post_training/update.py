"""The policy update of an iteration: scores the trajectories on the training path, then follows the clipped loss.

Work is a list of (video, step) pairs. It is planned for all processes at once, so that every one of them makes the same
number of calls of the network, which collectives inside need, and divides by the same number of pairs.
"""

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from ospnext_ms.post_training.rollout import batches, filled
from ospnext_ms.training.step import TrainStep

_SHUFFLE_STREAM = 0x5BFF


class PolicyStep(TrainStep):
    """TrainStep of a PolicyLoss that keeps what the loss returns beside its value: ratio, KL and log-probability."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        inner, self.kept = self._value_and_grad, []

        def value_and_grad(*batch):
            (loss, *others), values = inner(*batch)
            self.kept.append(others)
            return loss, values

        self._value_and_grad = value_and_grad

    def take(self):
        """(ratios, KLs, log-probabilities) [batches, B] of the calls since the last take."""
        kept, self.kept = self.kept, []
        return [np.stack([others[i].asnumpy() for others in kept]) for i in range(3)]


@dataclass(frozen=True)
class Experience:
    """What an update learns from: this process's n videos, S steps of the window.

    samples [S + 1, n, 16, T, h, w]; texts [n, L, C]; negative [L, C]; levels [S, 3] (sigma, sigma_next, std);
    old_log_probs [S, n] of the training path; reference_means [S, n, 16, T, h, w] or None; advantages and used [n].
    """

    samples: np.ndarray
    texts: np.ndarray
    negative: np.ndarray
    levels: np.ndarray
    old_log_probs: np.ndarray
    reference_means: np.ndarray | None
    advantages: np.ndarray
    used: np.ndarray


def levels_of(schedule):
    """[S, 3] of (sigma, sigma_next, std) of a RolloutSchedule's window, fp32."""
    return np.stack([schedule.window[:-1], schedule.window[1:], schedule.stds], 1).astype(np.float32)


def score(step_log_prob, trajectory, texts, negative, levels, batch_size):
    """Log-probabilities [S, n] and means [S, n, 16, T, h, w] of a trajectory on the training path.

    `step_log_prob`: compiled StepLogProb; it is called with `batch_size` pairs, as the loss is.
    """
    steps, videos = trajectory.log_probs.shape
    log_probs, means = np.empty((steps, videos), np.float32), np.empty(trajectory.samples[1:].shape, np.float32)
    pairs = [(video, step) for step in range(steps) for video in range(videos)]
    for rows in batches(len(pairs), batch_size):
        chosen = [pairs[i] for i in filled(rows, batch_size)]
        arguments = pair_inputs(trajectory.samples, texts, negative, levels, chosen)
        log_prob, mean = (result.asnumpy() for result in step_log_prob(*map(Tensor, arguments)))
        for i, row in enumerate(rows):
            video, step = pairs[row]
            log_probs[step, video], means[step, video] = log_prob[i], mean[i]
    return log_probs, means


def pair_inputs(samples, texts, negative, levels, pairs):
    """Inputs of StepLogProb for (video, step) pairs: x, x_next, text, negative, sigma, sigma_next, std."""
    videos, steps = (list(column) for column in zip(*pairs, strict=True))
    x, x_next = (np.stack([samples[step + ahead, video] for video, step in pairs]) for ahead in (0, 1))
    sigma, sigma_next, std = levels[steps].T
    return (x, x_next, texts[videos], np.stack([negative] * len(pairs)), *(np.ascontiguousarray(level) for level in
                                                                           (sigma, sigma_next, std)))


def plan_minibatches(used, data_size, minibatches, seed, iteration, epoch):
    """Videos of every optimiser step of an inner epoch: [minibatch][data rank] -> list of the rank's own video numbers.

    `used`: bool [all videos], in the order of ranks. Each rank's used videos are shuffled and dealt out evenly.
    """
    per_rank = np.asarray(used).reshape(data_size, -1)
    dealt = []
    for rank, own in enumerate(per_rank):
        videos = np.flatnonzero(own)
        np.random.default_rng([seed, _SHUFFLE_STREAM, iteration, epoch, rank]).shuffle(videos)
        dealt.append([part.tolist() for part in np.array_split(videos, minibatches)])
    return [[parts[i] for parts in dealt] for i in range(minibatches)]


def minibatch_inputs(experience, plan, data_rank, batch_size):
    """(inputs of PolicyLoss batch by batch, bool [batches, B] which of the pairs are real) of this rank.

    The weights make the mean over batches, slots and processes the mean over all real pairs of all ranks. Every rank
    has as many batches as the busiest.

    Args:
        plan: videos by data rank, an entry of `plan_minibatches`.
    """
    steps = len(experience.levels)
    total = steps * sum(map(len, plan))
    count = max(-(-steps * len(videos) // batch_size) for videos in plan)
    pairs = [(video, step) for video in plan[data_rank] for step in range(steps)]
    slots = count * batch_size
    real = np.arange(slots) < len(pairs)
    pairs = filled(pairs, slots) if pairs else [(0, 0)] * slots
    weights = np.where(real, slots * len(plan) / max(total, 1), 0).astype(np.float32)
    return [_loss_inputs(experience, pairs[i : i + batch_size], weights[i : i + batch_size])
            for i in range(0, slots, batch_size)], real.reshape(count, batch_size)


def _loss_inputs(experience, pairs, weights):
    videos, steps = (list(column) for column in zip(*pairs, strict=True))
    inputs = pair_inputs(experience.samples, experience.texts, experience.negative, experience.levels, pairs)
    means = experience.reference_means
    reference = inputs[0] if means is None else np.stack([means[step, video] for video, step in pairs])
    return (*inputs, experience.old_log_probs[steps, videos], experience.advantages[videos], weights, reference)
