"""Prompts in, frames out. The networks are loaded one after the other, so memory holds the largest, not all of them.

B batch, L text tokens, T/h/w grid of the latent. What passes from one network to the next lies on the host in fp32.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters
from tqdm import tqdm

from ospnext_ms.data.text import Tokenizer
from ospnext_ms.diffusion.sampler import guided_velocity, make_sampler
from ospnext_ms.generation.requests import starting_noise
from ospnext_ms.generation.team import SpreadTiles, Team, both_velocities
from ospnext_ms.models.dit import OSPNextDiT
from ospnext_ms.models.lora import Adapters
from ospnext_ms.models.umt5 import UMT5Encoder
from ospnext_ms.models.vae import Tiling, WanVAE
from ospnext_ms.parallel.sequence import ParallelSequence
from ospnext_ms.parallel.sharding import ShardedWeights
from ospnext_ms.quant.recipe import describe
from ospnext_ms.runtime import release_memory
from ospnext_ms.storage.open_weights import open_weights
from ospnext_ms.storage.peft_format import read_adapter
from ospnext_ms.storage.weights import load_weights, mismatch_report

# Latent frames of a whole run. Compiling the VAE takes as long as decoding about 8 without (tiny model on CPU).
COMPILE_VAE_FROM = 8


@dataclass
class Result:
    """One finished video: `frames` uint8 [f, H, W, 3] chunk by chunk, to be read once; `timings` in seconds.

    The timings of loading and of the text encoder are those of the whole run; "denoising" is the batch's.
    """

    index: int
    frames: Iterator[np.ndarray]
    timings: dict = field(default_factory=dict)


class TextToVideo:
    """The pipeline of one GenerateConfig.

    Tokenizes the prompts and compares the checkpoints with the networks when it is made, before any weight is read.

    Args:
        config: GenerateConfig. runtime: runtime.Runtime. prompts: one text per video.
        latents: starting noise, float array [n, 16, T, H/8, W/8]; drawn from the configured seed where it is None.
        team: generation.team.Team, the processes that share the work; None for one.

    `batches` are the positions of the prompts whose videos this process has a part in.

    Raises:
        FileNotFoundError: a checkpoint or the tokenizer is not there.
        ValueError: a checkpoint that does not fit its network, or a tokenizer that does not fit the text encoder.
    """

    def __init__(self, config, runtime, prompts, latents=None, team=None):
        self.config = config
        self.runtime = runtime
        self.team = team or Team()
        self.prompts = list(prompts)
        self.latents = latents
        size = config.sampling.batch_size
        batches = [range(i, min(i + size, len(self.prompts))) for i in range(0, len(self.prompts), size)]
        self.batches = batches[self.team.lane :: self.team.lanes]
        self._timings = {}
        self._tokens = self._tokenize()
        for name in ("text_encoder", "dit", "vae"):
            self._check_checkpoint(name)

    def __call__(self):
        """Yields a Result for each prompt of this process, in order; of several processes only for those that decode.

        Each one's frames have to be read before the next is asked for.
        """
        if not self.batches:
            return
        embeddings = self.embed()
        denoised, seconds = self.denoise(embeddings)
        if not self.team.decodes(self.config.model.vae.tile_size is not None):
            return
        vae = self._load("vae")
        indices = [i for batch in self.batches for i in batch]
        with self._progress(self.config.video.frames * len(denoised), "frame", "decoding") as bar:
            for index, latent, spent in zip(indices, denoised, seconds, strict=True):
                timings = {**self._timings, "denoising": spent}
                yield Result(index, _timed(self._decode(vae, latent, bar), timings, "decoding"), timings)
        del vae
        release_memory()

    def embed(self):
        """Encodes every distinct text of its batches: text -> fp32 [length, text_dim], without the rows of padding."""
        encoder = self._load("text_encoder")
        start = time.perf_counter()
        embeddings = {}
        wanted = {self.prompts[i] for batch in self.batches for i in batch} | {self.config.sampling.negative_prompt}
        for text, (ids, mask) in self._tokens.items():
            if text not in wanted:
                continue
            rows = encoder(Tensor(ids[None]), Tensor(mask[None]))
            embeddings[text] = _to_host(rows)[0, : mask.sum()]
        self._timings["text_encoding"] = time.perf_counter() - start
        del encoder, rows
        release_memory()
        return embeddings

    def denoise(self, embeddings):
        """Turns noise into latents, batch by batch: (list of fp32 [16, T, h, w], seconds of each)."""
        net = self._load("dit")
        if (quantised := describe(self.config.model.dit)) and self.team.leads:
            print(quantised, flush=True)
        velocity = self.runtime.compile(net)
        latents, seconds = [], []
        with self._progress(len(self.batches) * self.config.sampling.steps, "step", "denoising") as bar:
            for batch in self.batches:
                start = time.perf_counter()
                latents.extend(self._denoise_batch(velocity, batch, embeddings, bar))
                seconds.extend([time.perf_counter() - start] * len(batch))
        del velocity, net
        release_memory()
        return latents, seconds

    def _denoise_batch(self, velocity, batch, embeddings, bar):
        sampling = self.config.sampling
        text = self._text_tensor([embeddings[self.prompts[i]] for i in batch])
        negative = None
        if sampling.guidance != 1:
            negative = self._text_tensor([embeddings[sampling.negative_prompt]] * len(batch))
        noise = np.stack([self._noise(i) for i in batch])
        sampler = make_sampler(sampling.sampler, sampling.steps, sampling.shift)
        bar.set_postfix_str(f"video {batch[0] + 1}-{batch[-1] + 1} of {len(self.prompts)}")
        sample = integrate(velocity, sampler, Tensor(noise), text, negative, sampling.guidance, bar.update,
                           self.team.velocities())
        latents = _to_host(sample)
        if not np.isfinite(latents).all():
            path = self.config.model.dit.checkpoint
            raise FloatingPointError(f"the latents of videos {list(batch)} are not finite: {path} is damaged, "
                                     f"or the range of {self.runtime.dtype_name} is too small for it")
        return list(latents)

    def _noise(self, index):
        if self.latents is not None:
            return np.asarray(self.latents[index], np.float32)
        return starting_noise(self.config.latent_shape, self.config.sampling.seed, index)

    def _text_tensor(self, embeddings):
        """Embeddings of any length as fp32 [B, L, text_dim], the rows past each text's length zero (as Wan2.1)."""
        dit = self.config.model.dit
        text_BLC = np.zeros((len(embeddings), dit.text_len, dit.text_dim), np.float32)
        for row, embedding in zip(text_BLC, embeddings, strict=True):
            row[: len(embedding)] = embedding
        return Tensor(text_BLC)

    def _decode(self, vae, latent, bar):
        section, z = self.config.model.vae, Tensor(latent[None])
        if section.tile_size is None:
            chunks = vae.decode_frames(z)
        else:
            tiling = Tiling(section.tile_size, section.tile_overlap)
            chunks = [vae.decode(z, tiling, SpreadTiles(self.team.mesh.video_group))]
        for chunk in chunks:
            frames = to_uint8(_to_host(chunk)[0])
            bar.update(len(frames))
            yield frames

    def _progress(self, total, unit, what):
        """A progress bar, shown by the one process of its lane that leads it."""
        return tqdm(total=total, unit=unit, desc=what, dynamic_ncols=True, disable=not self.team.leads)

    def _tokenize(self):
        model, sampling = self.config.model, self.config.sampling
        texts = list(dict.fromkeys(self.prompts))
        if sampling.guidance != 1 and sampling.negative_prompt not in texts:
            texts.append(sampling.negative_prompt)
        ids, mask = Tokenizer(model.text_encoder.tokenizer, model.dit.text_len)(texts)
        if ids.max() >= model.text_encoder.vocab_size:
            raise ValueError(f"the tokenizer {model.text_encoder.tokenizer} gives the id {ids.max()}, but "
                             f"text_encoder.vocab_size is {model.text_encoder.vocab_size}")
        return dict(zip(texts, zip(ids, mask, strict=True), strict=True))

    def _build(self, name):
        """Network without any memory for its weights."""
        section = getattr(self.config.model, name)
        with no_init_parameters():
            if name == "vae":
                # As Wan2.1 serves it: the VAE is small, and its rounding errors would be seen in the frames.
                work = len(self.prompts) * self.config.latent_shape[1]
                return WanVAE(section, ms.float32, compile_chunks=self.runtime.compiled and work >= COMPILE_VAE_FROM)
            if name == "text_encoder":
                return UMT5Encoder(section, self.runtime.dtype)
            return OSPNextDiT(section, self.runtime.dtype, sequence=self._sequence(),
                              video_group=self.team.mesh.video_group)

    def _sequence(self):
        """What orders the tokens: None for the whole video on this device."""
        mesh, dit = self.team.mesh, self.config.model.dit
        if mesh.video_group.size == 1:
            return None
        return ParallelSequence(dit.sparse_ratio, dit.num_heads, mesh)

    def _check_checkpoint(self, name):
        path = getattr(self.config.model, name).checkpoint
        expected = {key: parameter.shape for key, parameter in self._build(name).parameters_and_names()}
        report = mismatch_report(expected, {key: tensor.shape for key, tensor in open_weights(path).items()})
        if report:
            raise ValueError(f"model.{name}: {path} does not fit the configured shape:\n" + "\n".join(report))

    def _load(self, name):
        start = time.perf_counter()
        net = self._build(name)
        load_weights(net, getattr(self.config.model, name).checkpoint)
        if name == "dit":
            if self.config.adapter is not None:
                add_adapter(net, self.config.adapter)
            ShardedWeights(net, self.team.mesh)
        net.set_train(False)
        self._timings[f"loading_{name}"] = time.perf_counter() - start
        return net


def integrate(velocity, sampler, sample, text, negative, guidance, on_step=lambda: None, velocities=both_velocities):
    """Follows the sampler from noise to data.

    Two calls a step where there is guidance, never one of twice the batch, which would need the memory of two (and on
    CPU takes twice as long as one).

    Args:
        velocity: callable (x [B, 16, T, h, w], t [B] in [0, 1000], text [B, L, C]) -> velocity as x.
        sampler: of diffusion.sampler.make_sampler. sample: starting noise, fp32.
        text, negative: embeddings; no guidance where `negative` is None.
        velocities: computes both branches of guidance, see generation.team.

    Returns:
        The latent, fp32 [B, 16, T, h, w].
    """
    sampler.reset()
    for i, timestep in enumerate(sampler.timesteps):
        # A tensor, because a Python number would be compiled into the graph: a new one every step.
        t_B = Tensor(np.full(sample.shape[0], timestep, np.float32))
        if negative is None:
            v = velocity(sample, t_B, text)
        else:
            v = guided_velocity(*velocities(velocity, sample, t_B, text, negative), guidance)
        sample = sampler.step(i, v, sample)
        # The device works behind the host's back: without waiting for the result, progress would be that of queueing.
        sample.asnumpy()
        on_step()
    return sample


def add_adapter(net, folder):
    """Puts the LoRA adapter of a folder in PEFT's format beside the weights of a transformer that has them already.

    Raises:
        FileNotFoundError, ValueError: no adapter there, or one that does not fit (see Adapters and read_adapter).
    """
    config, arrays = read_adapter(folder)
    Adapters(net, config).load(arrays)


def to_uint8(video_CFHW):
    """Frames uint8 [F, H, W, 3] of a video [3, F, H, W] in [-1, 1]; what lies outside is clipped."""
    return np.clip(np.rint((video_CFHW.transpose(1, 2, 3, 0) + 1) * 127.5), 0, 255).astype(np.uint8)


def _to_host(tensor):
    return tensor.astype(ms.float32).asnumpy()


def _timed(chunks, timings, name):
    """The same chunks; the seconds spent making them end up in timings[name]."""
    timings[name] = 0.0
    start = time.perf_counter()
    for chunk in chunks:
        timings[name] += time.perf_counter() - start
        yield chunk
        start = time.perf_counter()
