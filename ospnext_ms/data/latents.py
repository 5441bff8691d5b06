"""What training asks for: the batch of a step, the same after a restart and for any number of ranks.

NumPy only. B batch, T/h/w latent frames, height and width, L text tokens, C text width.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ospnext_ms.data.cache import Cache
from ospnext_ms.data.order import EpochOrder
from ospnext_ms.data.text import pad_text

# Last key of the random streams; EpochOrder's end in other numbers.
_CAPTION, _START = 2, 3
# Frames uint8 [F, H, W, 3] -> latent fp32 [16, T, h, w].
Encode = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one rank trains on in one step.

    latents fp32 [B, 16, T, h, w]; text fp32 [B, L, C], the rows past each text's length zero; names and captions of
    the samples, the caption being "" where the prompt was dropped.
    """

    latents: np.ndarray
    text: np.ndarray
    names: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()


class LatentDataset:
    """The samples of a cache in training order (see EpochOrder): one shape a step on all ranks, no state but the step.

    Ranks take consecutive parts of the step's global batch, so `data_size` ranks with `batch_size` samples see the same
    as one rank with data_size * batch_size. For gradient accumulation let `batch_size` be that of the whole step and
    cut the batch. Which caption a sample has (where it has several) and whether it is dropped to the empty text depend
    on seed, epoch and sample only.

    Args:
        folder: cache of `prepare-data`.
        batch_size: B, samples a step and rank. seed: of order, captions and dropping.
        text_len: L. text_drop: share of the prompts that become the empty text.
        exclude: names of samples to leave out.
        data_rank, data_size: position among, and number of, the ranks that see different samples.
        encode: function from frames uint8 [F, H, W, 3] to a latent fp32 [16, T, h, w]; needed where the cache holds
            videos, refused where it holds latents. A clip is then cut at a new random time in every epoch; a video that
            can no longer be read is a ValueError that names it, as another must not take its place.

    Raises:
        FileNotFoundError: no finished cache there.
        ValueError: a cache without samples or with longer texts than `text_len`, a share outside [0, 1], ranks that do
            not exist, `encode` missing or not needed, a name to leave out that no sample has.
    """

    # Nothing to say in progress lines.
    note = ""

    def __init__(self, folder: str | os.PathLike, *, batch_size: int, seed: int, text_len: int, text_drop: float = 0.0,
                 data_rank: int = 0, data_size: int = 1, encode: Encode | None = None, exclude: Iterable[str] = ()):
        self.cache = Cache(folder)
        if not self.cache.samples:
            raise ValueError(f"the cache {folder} holds no samples; its report.json says what was left out and why")
        if self.cache.text_len > text_len:
            raise ValueError(f"text_len is {text_len}, but texts in {folder} have up to {self.cache.text_len} tokens")
        if not 0 <= text_drop <= 1:
            raise ValueError(f"text_drop is {text_drop}; it must be from 0 to 1")
        if batch_size < 1 or not 0 <= data_rank < data_size:
            raise ValueError(f"batch_size is {batch_size}, data_rank {data_rank} of data_size {data_size}; batch_size "
                             "must be at least 1 and the rank one of 0 to data_size - 1")
        _check_encode(self.cache, encode)
        self.batch_size, self.seed, self.text_len, self.text_drop = batch_size, seed, text_len, text_drop
        self.data_rank, self.data_size = data_rank, data_size
        self._encode = encode
        self.excluded = _excluded(self.cache, exclude)
        self._members = [[i for i, sample in enumerate(self.cache.samples)
                          if sample.bucket == bucket and sample.name not in self.excluded]
                         for bucket in range(len(self.cache.buckets))]
        self._order = EpochOrder([len(members) for members in self._members], batch_size * data_size, seed)
        self.empty_text = pad_text(self.cache.empty_text(), text_len)

    def __len__(self) -> int:
        """Number of samples, without those left out."""
        return sum(map(len, self._members))

    @property
    def text_dim(self) -> int:
        """C."""
        return self.cache.text_dim

    def fingerprint(self) -> str:
        """A hash of what the cache holds."""
        return self.cache.fingerprint()

    def epoch(self, step: int) -> int:
        """Epoch of a step."""
        return self._order.locate(step)[0]

    def batch(self, step: int) -> Batch:
        """The batch of this rank in global step `step`, counted from 0."""
        bucket, places = self._order.batch(step)
        mine = places[self.data_rank * self.batch_size : (self.data_rank + 1) * self.batch_size]
        latents, texts, captions, names = [], [], [], []
        for epoch, place in mine:
            index = self._members[bucket][place]
            text, caption = self._draw_text(index, epoch)
            latents.append(self._latent(index, epoch))
            texts.append(text)
            captions.append(caption)
            names.append(self.cache.samples[index].name)
        return Batch(latents=np.stack(latents), text=np.stack(texts), names=tuple(names), captions=tuple(captions))

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray, str]:
        """(latent fp32 [16, T, h, w], text fp32 [L, C], caption) of sample `index` with its first caption."""
        text, caption = self.cache.text(self.cache.samples[index], 0)
        return self._latent(index, epoch=0), pad_text(text, self.text_len), caption

    def _draw_text(self, index: int, epoch: int) -> tuple[np.ndarray, str]:
        sample = self.cache.samples[index]
        rng = np.random.default_rng([self.seed, epoch, index, _CAPTION])
        choice = int(rng.integers(len(sample.texts)))
        if rng.random() < self.text_drop:
            return self.empty_text, ""
        text, caption = self.cache.text(sample, choice)
        return pad_text(text, self.text_len), caption

    def _latent(self, index: int, epoch: int) -> np.ndarray:
        sample = self.cache.samples[index]
        if self._encode is None:
            return self.cache.latent(sample)
        # Here, because caches of latents are read where there is no decoder.
        from ospnext_ms.data.clips import draw_start, read_clip

        record, (height, width, frames) = self.cache.record(sample), self.cache.buckets[sample.bucket]
        rng = np.random.default_rng([self.seed, epoch, index, _START])
        start = draw_start(rng, record["part"], frames, self.cache.fps, record["fps"])
        path = Path(self.cache.video_root) / record["path"]
        return self._encode(read_clip(path, start, self.cache.fps, frames, height, width))


def _excluded(cache: Cache, names: Iterable[str]) -> set[str]:
    """The names as a set; ValueError where one is none of the samples', or none is left."""
    names, known = set(names), {sample.name for sample in cache.samples}
    if names - known:
        raise ValueError(f"exclude names samples that {cache.folder} does not hold: "
                         f"{', '.join(sorted(names - known)[:5])}; names are such as {cache.samples[0].name}")
    if names == known:
        raise ValueError(f"exclude leaves no sample of {cache.folder}")
    return names


def _check_encode(cache: Cache, encode: Encode | None) -> None:
    if cache.contents == "videos" and encode is None:
        raise ValueError(f"the cache {cache.folder} holds videos, so training needs the VAE to encode them")
    if cache.contents == "latents" and encode is not None:
        raise ValueError(f"the cache {cache.folder} holds latents; there is nothing to encode")
