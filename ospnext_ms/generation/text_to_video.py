"""Prompts in, videos out, one after the other.

The texts are encoded first; then the transformer and the VAE stay loaded together, and each video is decoded as soon as
it is denoised, so memory does not grow with the number of prompts. What passes from one network to the next lies on the
host in fp32.
"""

import time
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from ospnext_ms.build import build_dit, check_checkpoints
from ospnext_ms.data.text import Tokenizer, pad_text
from ospnext_ms.data.video import write_mp4
from ospnext_ms.diffusion.integrate import guided, integrate
from ospnext_ms.diffusion.sampler import make_sampler
from ospnext_ms.generation.coders import FrameDecoder, TextEncoder, token_ids
from ospnext_ms.generation.noise import starting_noise
from ospnext_ms.generation.team import SpreadTiles, Team
from ospnext_ms.quant.recipe import describe
from ospnext_ms.runtime import release_memory

# Latent frames of a whole run. Compiling the VAE takes as long as decoding about 8 without (tiny model on CPU).
COMPILE_VAE_FROM = 8


@dataclass(frozen=True)
class Video:
    """A finished video: `index` of its prompt, `frames` uint8 [F, H, W, 3], `timings` {stage: seconds}.

    The timings of loading and of the text encoder are those of the whole run; "denoising" is the batch's.
    """

    index: int
    frames: np.ndarray
    timings: dict

    def write_to(self, path, fps, crf):
        """Writes an mp4 (H.264), atomically."""
        write_mp4(path, self.frames, fps, crf)


class TextToVideo:
    """The pipeline of one GenerateConfig.

    Tokenizes the prompts and compares the checkpoints with the networks when it is made, before any weight is read.

    Args:
        config: GenerateConfig. runtime: runtime.Runtime. prompts: one text per video.
        noise: starting noise, float array [n, 16, T, H/8, W/8]; drawn from the configured seed where it is None.
        team: generation.team.Team, the processes that share the work; None for one.

    `batches` are the positions of the prompts whose videos this process has a part in.

    Raises:
        FileNotFoundError: a checkpoint or the tokenizer is not there.
        ValueError: a checkpoint that does not fit its network, or a tokenizer that does not fit the text encoder.
    """

    def __init__(self, config, runtime, prompts, noise=None, team=None):
        self.config = config
        self.runtime = runtime
        self.team = team or Team()
        self.prompts = list(prompts)
        self._noise = noise
        size = config.sampling.batch_size
        batches = [range(i, min(i + size, len(self.prompts))) for i in range(0, len(self.prompts), size)]
        self.batches = batches[self.team.lane :: self.team.lanes]
        self._timings = {}
        model = config.model
        token_ids(model.text_encoder, Tokenizer(model.text_encoder.tokenizer, model.dit.text_len), self._texts())
        check_checkpoints(model)

    def videos(self):
        """Yields the Video of each prompt of this process, in order, on the one process of several that writes it."""
        decoder = None
        for index, latent in self.latents():
            if not self.team.decodes(self.config.model.vae.tile_size is not None):
                continue
            decoder = decoder or self._load("vae", self._decoder)
            began = time.perf_counter()
            frames = decoder(latent)
            timings = {**self._timings, "decoding": time.perf_counter() - began}
            if self.team.is_leader:
                yield Video(index, frames, timings)

    def latents(self):
        """Yields (index, fp32 [16, T, h, w]) of each prompt of this process, in order."""
        if not self.batches:
            return
        embeddings = self._embed()
        net = self._load("dit", lambda: build_dit(self.config.model.dit, self.runtime, self.team.mesh,
                                                  adapter=self.config.adapter,
                                                  switch_dtype=self.config.parallel_config.switch_dtype))
        if (quantised := describe(self.config.model.dit, self.runtime)) and self.team.is_leader:
            print(quantised, flush=True)
        velocity = self.runtime.compile(net)
        total = len(self.batches) * self.config.sampling.steps
        silent = not self.team.is_leader
        with tqdm(total=total, unit="step", desc="denoising", dynamic_ncols=True, disable=silent) as bar:
            for batch in self.batches:
                began = time.perf_counter()
                latents = self._denoise(velocity, batch, embeddings, bar)
                self._timings["denoising"] = time.perf_counter() - began
                yield from zip(batch, latents, strict=True)

    def _embed(self):
        """{text: fp32 [length, text_dim]} of every distinct text of its batches, without the rows of padding."""
        model = self.config.model
        encode = self._load("text_encoder",
                            lambda: TextEncoder(model.text_encoder, model.dit.text_len, self.runtime, batch=1))
        began = time.perf_counter()
        texts = self._texts(self.batches)
        embeddings = dict(zip(texts, encode(texts), strict=True))
        self._timings["text_encoding"] = time.perf_counter() - began
        del encode
        release_memory()
        return embeddings

    def _texts(self, batches=None):
        """The distinct texts of all prompts, or of those of some batches, and the negative prompt where it is used."""
        chosen = self.prompts if batches is None else [self.prompts[i] for batch in batches for i in batch]
        sampling = self.config.sampling
        return list(dict.fromkeys([*chosen, *([sampling.negative_prompt] if sampling.guidance != 1 else [])]))

    def _denoise(self, velocity, batch, embeddings, bar):
        sampling, text_len = self.config.sampling, self.config.model.dit.text_len

        def texts(several):
            return Tensor(np.stack([pad_text(embeddings[text], text_len) for text in several]))

        text = texts(self.prompts[i] for i in batch)
        negative = None if sampling.guidance == 1 else texts([sampling.negative_prompt] * len(batch))
        noise = np.stack([self._starting_noise(i) for i in batch])
        bar.set_postfix_str(f"video {batch[0] + 1}-{batch[-1] + 1} of {len(self.prompts)}")
        sample = integrate(guided(velocity, text, negative, sampling.guidance, self.team.velocities()),
                           make_sampler(sampling.sampler, sampling.steps, sampling.shift), Tensor(noise), bar.update)
        latents = sample.astype(ms.float32).asnumpy()
        if not np.isfinite(latents).all():
            path = self.config.model.dit.checkpoint
            raise FloatingPointError(f"the latents of videos {list(batch)} are not finite: {path} is damaged, "
                                     f"or the range of {self.runtime.dtype_name} is too small for it")
        return list(latents)

    def _starting_noise(self, index):
        if self._noise is not None:
            return np.asarray(self._noise[index], np.float32)
        return starting_noise(self.config.latent_shape, self.config.sampling.seed, index)

    def _decoder(self):
        work = len(self.prompts) * self.config.latent_shape[1]
        return FrameDecoder(self.config.model.vae, self.runtime.compiled and work >= COMPILE_VAE_FROM,
                            SpreadTiles(self.team.mesh.video_group))

    def _load(self, name, make):
        began = time.perf_counter()
        made = make()
        self._timings[f"loading_{name}"] = time.perf_counter() - began
        return made
