"""What every step is fed: samples, noise and noise levels, each a function of the seed, the step and the sample alone.

NumPy only. B samples, T/h/w latent, L text tokens, C text width. Samples are numbered over the whole step's batch of
all processes, so that the draws do not depend on how many processes share the work, nor on how they share it.
"""

from concurrent.futures import ThreadPoolExecutor
from statistics import NormalDist

import numpy as np

from ospnext_ms.data.latents import Batch, LatentDataset
from ospnext_ms.diffusion.flow import dynamic_shift, training_sigmas

# Last keys of the random streams; those of ospnext_ms.data are smaller.
_NOISE, _SIGMA, _RANDOM_DATA, _FIXED_NOISE = 10, 11, 12, 20


class RandomSource:
    """Noise instead of data, for measuring speed. Has what LatentDataset has and training uses."""

    note = "RANDOM DATA, not a training run"
    excluded = frozenset()

    def __init__(self, latent_shape, text_shape, *, batch_size, seed, data_rank, data_size):
        self.latent_shape, self.text_shape = latent_shape, text_shape
        self.batch_size, self.seed = batch_size, seed
        self.data_rank, self.data_size = data_rank, data_size

    def batch(self, step):
        """The Batch of this rank in a step."""
        latents, texts = [], []
        for i in range(self.data_rank * self.batch_size, (self.data_rank + 1) * self.batch_size):
            rng = np.random.default_rng([self.seed, step, i, _RANDOM_DATA])
            latents.append(rng.standard_normal(self.latent_shape, np.float32))
            texts.append(rng.standard_normal(self.text_shape, np.float32))
        return Batch(latents=np.stack(latents), text=np.stack(texts))

    def epoch(self, step):
        """There are none."""
        return 0

    def fingerprint(self):
        """Nothing is read."""
        return self.note


def open_source(config, mesh, encode=None):
    """The source of a TrainConfig for this process. `encode` is needed where the cache holds videos.

    Raises:
        FileNotFoundError, ValueError: no finished cache, or one that does not fit the model (see LatentDataset).
    """
    section, dit = config.train_dataset, config.model.dit
    common = dict(batch_size=samples_per_step(config), seed=config.seed, data_rank=mesh.data_rank,
                  data_size=mesh.data_size)
    if section.kind == "random":
        return RandomSource((dit.in_channels, *section.latent_size), (dit.text_len, dit.text_dim), **common)
    dataset = LatentDataset(section.path, text_len=dit.text_len, text_drop=section.text_drop, encode=encode,
                            exclude=section.exclude, **common)
    if dataset.text_dim != dit.text_dim:
        raise ValueError(f"texts in {section.path} have width {dataset.text_dim}, but dit.text_dim is {dit.text_dim}")
    return dataset


def samples_per_step(config):
    """Samples of one process in a step, over all accumulated batches."""
    return config.runner_config.batch_size * config.runner_config.gradient_accumulation_steps


def flow_shift(section, latent_hw, patch_size):
    """Shift of a FlowSection for latents of height and width `latent_hw`."""
    if section.shift != "dynamic":
        return section.shift
    return dynamic_shift(latent_hw[0] // patch_size[1] * (latent_hw[1] // patch_size[2]))


def unshifted_sigma(section, normal):
    """Sigmoid of a normal number (or array) with the mean and deviation of a FlowSection."""
    return 1 / (1 + np.exp(-(section.logit_mean + section.logit_std * normal)))


class StepInputs:
    """The inputs of VelocityLoss for every step of a run.

    Args:
        config: TrainConfig. source: LatentDataset or RandomSource. mesh: parallel.mesh.Mesh.
    """

    def __init__(self, config, source, mesh):
        self.config = config
        self.source = source
        self.first_sample = mesh.data_rank * samples_per_step(config)

    def __call__(self, step):
        """[(x0, noise, sigma, text), ...], one tuple for each accumulated batch of step `step`, counted from 0."""
        batch = self.source.batch(step)
        x0, text = batch.latents, batch.text
        noise, sigma = self._draw(step, x0.shape)
        size = self.config.runner_config.batch_size
        return [(x0[i : i + size], noise[i : i + size], sigma[i : i + size], text[i : i + size])
                for i in range(0, len(x0), size)]

    def ahead(self, first, stop, threaded=True):
        """Yields the inputs of steps `first` ... `stop` - 1; with `threaded` the next are made meanwhile."""
        if not threaded:
            yield from map(self, range(first, stop))
            return
        with ThreadPoolExecutor(1) as pool:
            coming = [pool.submit(self, step) for step in range(first, min(first + 2, stop))]
            try:
                for step in range(first, stop):
                    inputs = coming.pop(0).result()
                    if step + 2 < stop:
                        coming.append(pool.submit(self, step + 2))
                    yield inputs
            finally:
                pool.shutdown(cancel_futures=True)

    def _draw(self, step, shape):
        seed, flow = self.config.seed, self.config.flow
        samples = range(self.first_sample, self.first_sample + shape[0])
        noise = [np.random.default_rng([seed, step, i, _NOISE]).standard_normal(shape[1:], np.float32) for i in samples]
        normal = np.array([np.random.default_rng([seed, step, i, _SIGMA]).standard_normal() for i in samples])
        shift = flow_shift(flow, shape[3:], self.config.model.dit.patch_size)
        sigma = training_sigmas(unshifted_sigma(flow, normal), shift)
        return np.stack(noise), sigma.astype(np.float32)


class FixedInputs:
    """The inputs of VelocityLoss for measuring: the clips, noise and noise levels of an EvalDatasetSection.

    Each clip is taken at `sigmas` levels, the quantiles (j + 1/2) / sigmas of the training distribution, with noise of
    its own for each, and with its first caption; prompts are not dropped. `len()` is the number of clips.

    Args:
        section: EvalDatasetSection. flow: FlowSection. dit: DiTConfig. encode: needed where the cache holds videos.

    Raises:
        FileNotFoundError, ValueError: no finished cache, or fewer clips in it than asked for.
    """

    def __init__(self, section, flow, dit, encode=None):
        self.section = section
        self.flow = flow
        self.patch_size = dit.patch_size
        self.dataset = LatentDataset(section.path, batch_size=1, seed=section.seed, text_len=dit.text_len,
                                     encode=encode)
        if section.clips > len(self.dataset):
            raise ValueError(f"eval_dataset.clips is {section.clips}, but {section.path} holds {len(self.dataset)}")

    def __len__(self):
        return self.section.clips

    def __call__(self, clip):
        """(x0, noise, sigma, text) of a clip at all its noise levels: batches of `sigmas` samples, fp32."""
        count = self.section.sigmas
        latent, text, _ = self.dataset.sample(clip)
        shift = flow_shift(self.flow, latent.shape[2:], self.patch_size)
        normal = np.array([NormalDist().inv_cdf((j + 0.5) / count) for j in range(count)])
        sigma = training_sigmas(unshifted_sigma(self.flow, normal), shift).astype(np.float32)
        rng = np.random.default_rng([self.section.seed, clip, _FIXED_NOISE])
        noise = rng.standard_normal((count, *latent.shape), np.float32)
        return np.stack([latent] * count), noise, sigma, np.stack([text] * count)
