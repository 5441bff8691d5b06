"""From noise to latents with a stochastic window, and everything a policy update needs to know about it.

A group is the videos of one prompt. They start from the same noise, so that the deterministic steps before the window
are the same for all of them and are computed once; what the videos differ by is the noise drawn inside the window.

n videos, S steps of the window, B of a batch; trajectories lie on the host in fp32.
"""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ospnext_ms.diffusion.flow import NUM_TRAIN_TIMESTEPS
from ospnext_ms.diffusion.integrate import integrate, timestep_tensor
from ospnext_ms.diffusion.sampler import sampler_from_sigmas, sde_step
from ospnext_ms.generation.prompt_sampler import batches, filled

_START_STREAM, _STEP_STREAM = 0x5747, 0x57EB


@dataclass(frozen=True)
class Trajectory:
    """n videos: `samples` [S + 1, n, 16, T, h, w] at the window's levels, `log_probs` [S, n], `latents` [n, ...]."""

    samples: np.ndarray
    log_probs: np.ndarray
    latents: np.ndarray


def group_noise(shape, seed, iteration, group):
    """Starting noise of a group, fp32; the same whatever the number of processes."""
    return np.random.default_rng([seed, _START_STREAM, iteration, group]).standard_normal(shape, dtype=np.float32)


def step_noise(shape, seed, iteration, video, step):
    """Noise of one stochastic step of one video (numbered through all groups), fp32."""
    stream = np.random.default_rng([seed, _STEP_STREAM, iteration, video, step])
    return stream.standard_normal(shape, dtype=np.float32)


class Rollout:
    """Makes trajectories with a policy.

    Args:
        velocity: callable (x [B, ...], t [B], text [B, L, C], negative [B, L, C]) -> guided velocity.
        batch_size: B; smaller batches are filled up, so that one graph serves all.
        rest_sampler: of diffusion.choices.SamplerName, the ODE after the window.
    """

    def __init__(self, velocity, batch_size, rest_sampler):
        self.velocity = velocity
        self.batch_size = batch_size
        self.rest_sampler = rest_sampler

    def __call__(self, schedule, group_starts, groups, texts, negative, draw):
        """Trajectory of n videos.

        Args:
            schedule: RolloutSchedule. group_starts: {group: noise}. groups: the group of each video.
            texts: {group: embedding [L, C]}. negative: [L, C]. draw: (video, step) -> noise.
        """
        entries = self._run_prefix(schedule, group_starts, texts, negative)
        parts = []
        for rows in batches(len(groups), self.batch_size):
            parts.append(self._run_batch(schedule, rows, entries, groups, texts, negative, draw))
        samples, log_probs, latents = zip(*parts, strict=True)
        return Trajectory(np.concatenate(samples, 1), np.concatenate(log_probs, 1), np.concatenate(latents))

    def _run_prefix(self, schedule, starts, texts, negative):
        """{group: sample where the window begins}."""
        if len(schedule.prefix) == 1:
            return starts
        names, entries = list(starts), {}
        for rows in batches(len(names), self.batch_size):
            members = [names[i] for i in filled(rows, self.batch_size)]
            x = Tensor(np.stack([starts[name] for name in members]))
            text, empty = self._texts([texts[name] for name in members], negative)
            x = self.follow(x, schedule.prefix, text, empty, "euler").asnumpy()
            entries |= {names[row]: x[i] for i, row in enumerate(rows)}
        return entries

    def _run_batch(self, schedule, rows, entries, groups, texts, negative, draw):
        members = filled(rows, self.batch_size)
        x = Tensor(np.stack([entries[groups[i]] for i in members]))
        text, empty = self._texts([texts[groups[i]] for i in members], negative)
        count, samples, log_probs = len(rows), [x.asnumpy()[: len(rows)]], []
        for step, std in enumerate(schedule.stds):
            sigma, sigma_next = schedule.window[step : step + 2]
            noise = Tensor(np.stack([draw(i, step) for i in members]))
            time = timestep_tensor(NUM_TRAIN_TIMESTEPS * float(sigma), len(members))
            velocity = self.velocity(x, time, text, empty)
            levels = (Tensor(float(level), ms.float32) for level in (sigma, sigma_next, std))
            x, log_prob, _ = sde_step(velocity, x, *levels, noise=noise)
            samples.append(x.asnumpy()[:count])
            log_probs.append(log_prob.asnumpy()[:count])
        latents = self.follow(x, schedule.rest, text, empty, self.rest_sampler).asnumpy()[:count]
        return np.stack(samples), np.stack(log_probs), latents

    def follow(self, x, sigmas, text, empty, sampler):
        """The ODE along given levels."""
        return integrate(lambda x, t_B: self.velocity(x, t_B, text, empty), sampler_from_sigmas(sampler, sigmas), x)

    def _texts(self, embeddings, negative):
        return Tensor(np.stack(embeddings)), Tensor(np.stack([negative] * len(embeddings)))
