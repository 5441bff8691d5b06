"""Jobs in, videos out, one after the other.

The texts are encoded first; then the transformer and the VAE stay loaded together, and each video is decoded as soon as
it is denoised, so memory does not grow with the number of jobs. What passes from one network to the next lies on the
host in fp32.
"""

import sys
import time
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ospnext_ms.build import check_checkpoints
from ospnext_ms.data.text import Tokenizer, pad_text
from ospnext_ms.data.video import write_mp4
from ospnext_ms.diffusion.integrate import guided, integrate
from ospnext_ms.diffusion.sampler import make_sampler
from ospnext_ms.generation.coders import token_ids
from ospnext_ms.generation.embeddings import EmbeddingFile
from ospnext_ms.generation.jobs import Job, batches_of
from ospnext_ms.generation.networks import Networks
from ospnext_ms.generation.noise import starting_noise
from ospnext_ms.generation.step_cache import CachedVelocity, MeasuredVelocity, reused_steps_of
from ospnext_ms.generation.team import Team
from ospnext_ms.parallel.agreement import Highest
from ospnext_ms.parallel.interruption import Interruption
from ospnext_ms.reporting.clock import StepClock
from ospnext_ms.reporting.progress import format_seconds, progress_bar

# Latent frames of a whole list of jobs, however much of it this process makes: a resumed or shared run is to compute as
# an undisturbed one. Compiling the VAE takes as long as decoding about 8 without (tiny model on CPU).
COMPILE_VAE_FROM = 8
_TEXTS_PER_CHECK = 256


class Interrupted(Exception):
    """A signal asked for an end, and a step is done; `number` of the signal."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class Video:
    """A finished video: its `job`, `frames` uint8 [F, H, W, 3], `timings` {stage: seconds}.

    The timings of loading and of the text encoder are those of the whole run; "denoising" is the batch's.
    """

    job: Job
    frames: np.ndarray
    timings: dict

    def write_to(self, path, fps, crf):
        """Writes an mp4 (H.264), atomically."""
        write_mp4(path, self.frames, fps, crf)


class TextToVideo:
    """The pipeline of one GenerateConfig.

    Tokenizes the texts and compares the checkpoints with the networks when it is made, before any weight is read.

    Args:
        config: GenerateConfig. runtime: runtime.Runtime. jobs: list of generation.jobs.Job.
        noise: starting noise, float array [n, 16, T, H/8, W/8], one entry a job; drawn from each job's seed and index
            where it is None.
        team: generation.team.Team, the processes that share the work; None for one.
        networks: generation.networks.Networks of this configuration and team that stay loaded; its own by default.

    Raises:
        FileNotFoundError: a checkpoint or the tokenizer is not there.
        ValueError: a checkpoint that does not fit its network, or a tokenizer that does not fit the text encoder.
    """

    def __init__(self, config, runtime, jobs, noise=None, team=None, networks=None):
        self.config = config
        self.runtime = runtime
        self.team = team or Team()
        self.jobs = list(jobs)
        self.networks = networks or Networks(
            config, runtime, self.team, compiles_decoder=len(self.jobs) * config.latent_shape[1] >= COMPILE_VAE_FROM)
        self._noise = None if noise is None else {job.name: noise[i] for i, job in enumerate(self.jobs)}
        self._timings = {}
        model = config.model
        texts, tokenizer = _texts_of(self.jobs), Tokenizer(model.text_encoder.tokenizer, model.dit.text_len)
        for i in range(0, len(texts), _TEXTS_PER_CHECK):
            token_ids(model.text_encoder, tokenizer, texts[i : i + _TEXTS_PER_CHECK])
        check_checkpoints(model)

    def videos(self, batches=None, wanted=None, interruption=None, on_step=None):
        """Yields the Video of each job, in order, on the one process of those that make it which is to write it.

        Args:
            batches: those in which all processes of this lane (see generation.team) have a part, of the batches into
                which `jobs` are cut; this lane's share of all of them by default.
            wanted: names of the jobs whose videos are wanted, all by default. Others are denoised with their batch.
            interruption: parallel.interruption.Interruption, or what has its `asked` and `begin`.
            on_step: function without arguments, called after every step of a batch.

        Raises:
            Interrupted: a signal asked for an end, after the step in which it came.
            FloatingPointError: a network returned values that are not finite.
        """
        for job, latent in self.latents(batches, interruption, on_step=on_step):
            if wanted is not None and job.name not in wanted:
                continue
            if not self.team.decodes(self.config.model.vae.tile_size is not None):
                continue
            decoder = self.networks.decoder
            began = time.perf_counter()
            frames = decoder(latent)
            timings = {**self.networks.timings, **self._timings, "decoding": time.perf_counter() - began}
            if self.team.is_leader:
                yield Video(job, frames, timings)

    def latents(self, batches=None, interruption=None, ratios=None, on_step=None):
        """Yields (Job, fp32 [16, T, h, w]) of each job of the batches, see `videos`.

        `ratios`: lists, one a step, to which the ratios of a step_cache.Calibration are added; no step reuses then.
        """
        if batches is None:
            batches = batches_of(self.jobs, self.config.sampling.batch_size)[self.team.lane :: self.team.lanes]
        if not batches:
            return
        interruption = interruption or Interruption()
        embeddings = self._embed(_texts_of([job for batch in batches for job in batch]))
        velocity_of_batch = self._velocities(ratios)
        progress = _Progress(batches, self.config.sampling.steps, self.team, interruption, on_step)
        interruption.begin()
        with progress.bar:
            for batch in batches:
                began = time.perf_counter()
                latents = self._denoise(velocity_of_batch(), batch, embeddings, progress.step)
                self._timings["denoising"] = time.perf_counter() - began
                yield from zip(batch, latents, strict=True)
                progress.end_batch(batch)

    def _velocities(self, ratios):
        """Function that returns the velocity with which a batch is denoised."""
        networks, reused_steps = self.networks, reused_steps_of(self.config)
        if ratios is None and reused_steps is None:
            velocity = networks.velocity
            return lambda: velocity
        branches = 1 if self.config.sampling.guidance == 1 or self.team.guidance_group.size > 1 else 2
        computed = networks.computed_step
        if ratios is not None:
            return lambda: MeasuredVelocity(computed, branches, ratios)
        reused = networks.reused_step
        if self.team.is_leader:
            print(f"{sum(reused_steps)} of {len(reused_steps)} steps reuse what the blocks added before", flush=True)
        return lambda: CachedVelocity(computed, reused, reused_steps, branches)

    def _embed(self, texts):
        """{text: fp32 [length, text_dim]} of texts, without the rows of padding."""
        encode, began, embeddings = self.networks.text_encoder, time.perf_counter(), EmbeddingFile()
        for text in progress_bar("encoding", "text", len(texts), iterable=texts, disable=not self.team.is_leader):
            embeddings[text] = encode([text])[0]
        self._timings["text_encoding"] = time.perf_counter() - began
        del encode
        self.networks.texts_are_encoded()
        return embeddings

    def _denoise(self, velocity, batch, embeddings, on_step):
        sampling, text_len = self.config.sampling, self.config.model.dit.text_len

        def embedded(texts):
            return Tensor(np.stack([pad_text(embeddings[text], text_len) for text in texts]))

        text = embedded(job.prompt for job in batch)
        negative = None if sampling.guidance == 1 else embedded(job.negative_prompt for job in batch)
        noise = np.stack([self._starting_noise(job) for job in batch])
        sample = integrate(guided(velocity, text, negative, sampling.guidance, self.team.velocities()),
                           make_sampler(sampling.sampler, sampling.steps, sampling.shift), Tensor(noise), on_step)
        latents = sample.astype(ms.float32).asnumpy()
        if not np.isfinite(latents).all():
            path, names = self.config.model.dit.checkpoint, ", ".join(job.name for job in batch)
            raise FloatingPointError(f"the latents of {names} are not finite: {path} is damaged, or the range of "
                                     f"{self.runtime.dtype_name} is too small for it")
        return list(latents)

    def _starting_noise(self, job):
        if self._noise is not None:
            return np.asarray(self._noise[job.name], np.float32)
        return starting_noise(self.config.latent_shape, job.seed, job.index)


class _Progress:
    """Steps and videos of a process: what is told of them, and whether a signal ends the run after one of them."""

    def __init__(self, batches, steps, team, interruption, on_step=None):
        self._on_step = on_step
        self._steps, self._left_of_batch = steps, steps
        self._videos, self._done = sum(map(len, batches)), 0
        self._clock = StepClock(len(batches))
        self.bar = progress_bar("denoising", "step", len(batches) * steps, disable=not team.is_leader, smoothing=0)
        self.bar.set_postfix_str(self._words())
        # All processes of a lane leave after the same step: one alone would be waited for.
        groups = [group for group in (team.mesh.video_group, team.guidance_group) if group.size > 1]
        self._highest = [Highest(group) for group in groups]
        self._interruption = interruption

    def step(self):
        """After a step. After the last one of a batch its videos are written first."""
        self.bar.update()
        if self._on_step:
            self._on_step()
        self._left_of_batch -= 1
        if self._left_of_batch:
            self._leave_if_asked()
        else:
            self.bar.set_description("decoding and writing")

    def end_batch(self, batch):
        """After the videos of a batch are written."""
        self._clock.tick()
        self._left_of_batch = self._steps
        self._done += len(batch)
        self.bar.set_description("denoising", refresh=False)
        self.bar.set_postfix_str(self._words())
        if self._videos > 1 and not self.bar.disable:
            self.bar.write(f"{', '.join(job.name for job in batch)}: {self._words()}", file=sys.stderr)
        if self._done < self._videos:
            self._leave_if_asked()

    def _words(self):
        words = [f"{self._done} of {self._videos} videos done", f"{self._videos - self._done} to do"]
        if self._done < self._videos and self._clock.seconds_left is not None:
            words.append(f"{format_seconds(self._clock.seconds_left)} left")
        return ", ".join(words)

    def _leave_if_asked(self):
        asked = self._interruption.asked
        for highest in self._highest:
            asked = highest(asked)
        if asked:
            raise Interrupted(asked)


def _texts_of(jobs):
    """The distinct texts of jobs, in the order in which they are needed."""
    return list(dict.fromkeys(text for job in jobs for text in job.texts))
