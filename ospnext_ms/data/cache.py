"""The cache that `prepare-data` writes and training reads: latents and text embeddings in shards, and an index of them.

    index.json                  written last: a folder without it is not finished
    clips-00000.safetensors     latents [16, T, h, w], named by sample; metadata: the samples, and what was left out
    text-00000.safetensors      embeddings [length, text_dim] of the captions of that shard's samples, named "0", "1"...
    text-empty.safetensors      the empty text's, for dropped prompts
    settings.json               what all of it depends on; report.json: what was left out and why

The index holds the SHA-256 of every shard, so that a cache is known by its contents: a shard that is not the one that
was indexed is refused when it is first used.

A cache whose contents are "videos" has the same files, with no latents in them: training reads the clips itself.
"""

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeGuard

import numpy as np

from ospnext_ms.storage.files import atomic_path, current_folder
from ospnext_ms.storage.fingerprint import of_values, of_whole_file
from ospnext_ms.storage.safetensors_io import ArrayTensor, StoredTensor, read_header, write_file

INDEX = "index.json"
SETTINGS = "settings.json"
REPORT = "report.json"
EMPTY_TEXT = "text-empty.safetensors"
FORMAT = "ospnext_ms cache 1"
STORED_DTYPES = {"fp32": np.float32, "fp16": np.float16}


def clips_shard(number: int) -> str:
    """File name of a shard of clips."""
    return f"clips-{number:05d}.safetensors"


def text_shard(number: int) -> str:
    """File name of the shard with the text embeddings of the clips of shard `number`."""
    return f"text-{number:05d}.safetensors"


@dataclass(frozen=True)
class Sample:
    """One clip: its name, the shard it lies in, its bucket (a position in the index's list), and which texts of that
    shard describe it."""

    name: str
    shard: int
    bucket: int
    texts: tuple[int, ...]


def write_clips(path: str | os.PathLike, latents: Mapping[str, np.ndarray], samples: list[dict],
                left_out: list[dict]) -> None:
    """Writes a shard of clips atomically.

    Args:
        latents: {sample name: array [16, T, h, w]}, empty where the cache's contents are videos.
        samples, left_out: lists of plain dicts, kept as they are.
    """
    metadata = {"samples": json.dumps(samples), "left_out": json.dumps(left_out)}
    write_file(path, {name: ArrayTensor(array) for name, array in latents.items()}, metadata)


def read_clips(path: str | os.PathLike) -> tuple[dict[str, StoredTensor], list[dict], list[dict]]:
    """(tensors by name, samples, left_out) of a shard of clips. ValueError where it is damaged."""
    tensors, metadata = read_header(path)
    try:
        return tensors, json.loads(metadata["samples"]), json.loads(metadata["left_out"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a shard of clips: {error!r}") from error


def write_texts(path: str | os.PathLike, captions: Sequence[str], embeddings: Iterable[np.ndarray]) -> None:
    """Writes a shard of text embeddings atomically: captions, and as many arrays [length, text_dim]."""
    tensors = {str(i): ArrayTensor(array) for i, array in enumerate(embeddings)}
    write_file(path, tensors, {"captions": json.dumps(captions, ensure_ascii=False)})


def read_texts(path: str | os.PathLike) -> tuple[list[StoredTensor], list[str]]:
    """(list of stored embeddings, captions) of a shard of texts. ValueError where it is damaged."""
    tensors, metadata = read_header(path)
    try:
        captions = json.loads(metadata["captions"])
        return [tensors[str(i)] for i in range(len(captions))], captions
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a shard of text embeddings: {error!r}") from error


def write_json(path: str | os.PathLike, value: object) -> None:
    """Writes a value as JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_index(folder: str | os.PathLike, *, contents: str, fps: float, buckets: Iterable[tuple[int, int, int]],
                text_len: int, text_dim: int, samples: Sequence[Sample], video_root: str | None = None) -> None:
    """Writes the index of a complete cache; buckets [(height, width, frames), ...] in pixels, samples [Sample, ...].

    video_root: where the paths of the samples' records begin, in a cache that holds videos.
    """
    rows = [[sample.name, sample.shard, sample.bucket, list(sample.texts)] for sample in samples]
    folder = Path(folder)
    shards = {shard for sample in samples for shard in (clips_shard(sample.shard), text_shard(sample.shard))}
    hashes = {name: of_whole_file(folder / name) for name in sorted({EMPTY_TEXT} | shards)}
    index = {"format": FORMAT, "contents": contents, "fps": fps, "buckets": [list(bucket) for bucket in buckets],
             "text_len": text_len, "text_dim": text_dim, "video_root": video_root, "samples": rows, "sha256": hashes}
    with atomic_path(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(index, separators=(",", ":")), encoding="utf-8")


def indexed_hashes(folder: str | os.PathLike) -> dict[str, str]:
    """{file name: SHA-256} of a folder's index; empty where there is none, or one without hashes."""
    try:
        return json.loads((Path(folder) / INDEX).read_text(encoding="utf-8")).get("sha256", {})
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


class Cache:
    """A complete cache, read piece by piece; no array is held.

    Args:
        folder: of `prepare-data`.

    Attributes: contents ("latents" or "videos"), fps, buckets [(height, width, frames)], text_len (longest text in
    tokens), text_dim, video_root (None where it holds latents), samples [Sample].

    Raises:
        FileNotFoundError: no such folder, or no index in it (not finished).
        ValueError: an index that is damaged or of another format.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.is_file():
            state = "is not finished: it holds no " + INDEX if self.folder.is_dir() else "does not exist"
            raise FileNotFoundError(f"the cache {folder} {state} {current_folder()}; make it with: python -m "
                                    "ospnext_ms prepare-data --config FILE of yaml_configs/prepare_data "
                                    "(docs/prepare_data.md)")
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            if index["format"] != FORMAT:
                raise ValueError(f"its format is {index['format']!r}, expected {FORMAT!r}")
            self.contents, self.fps = index["contents"], index["fps"]
            self.buckets = [tuple(bucket) for bucket in index["buckets"]]
            self.text_len, self.text_dim = index["text_len"], index["text_dim"]
            self.video_root = index["video_root"]
            self.samples = [Sample(name, shard, bucket, tuple(texts))
                            for name, shard, bucket, texts in index["samples"]]
            # Caches of earlier versions have none, and are taken at their names.
            self._hashes = dict(index.get("sha256", {}))
            self._check_index()
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not an index of a cache: {error!r}") from error
        self._checked: set[str] = set()
        # Headers only, a few kilobytes each.
        self._clips = lru_cache(maxsize=4096)(lambda number: read_clips(self._indexed(clips_shard(number))))
        self._texts = lru_cache(maxsize=4096)(lambda number: read_texts(self._indexed(text_shard(number))))

    def fingerprint(self) -> str:
        """A hash of what the cache holds, equal wherever its folder, and that of its videos, lies."""
        settings = self.folder / SETTINGS
        hashes = [self._hashes] if self._hashes else []
        return of_values([*hashes, self.contents, self.fps, self.buckets, self.text_len, self.text_dim,
                          [[sample.name, sample.shard, sample.bucket, sample.texts] for sample in self.samples],
                          settings.read_text(encoding="utf-8") if settings.is_file() else None])

    def _check_index(self) -> None:
        """ValueError where the index, which no hash covers, holds what no cache has."""
        root = self.video_root
        if self.contents not in ("latents", "videos") or self.contents == "videos" and not isinstance(root, str):
            raise ValueError(f"contents is {self.contents!r} and video_root {root!r}")
        if isinstance(self.fps, bool) or not isinstance(self.fps, int | float) or not 0 < self.fps < math.inf:
            raise ValueError(f"fps is {self.fps!r}")
        if not all(len(bucket) == 3 for bucket in self.buckets):
            raise ValueError("a bucket is not [height, width, frames]")
        sizes = (self.text_len, self.text_dim, *itertools.chain.from_iterable(self.buckets))
        if not all(_is_count(size) and size > 0 for size in sizes):
            raise ValueError("text_len, text_dim and the numbers of a bucket must be whole numbers above 0")
        for sample in self.samples:
            if not (isinstance(sample.name, str) and _is_count(sample.shard) and _is_count(sample.bucket)
                    and sample.bucket < len(self.buckets) and sample.texts and all(map(_is_count, sample.texts))):
                raise ValueError(f"no sample is {sample}")

    def _indexed(self, name: str) -> Path:
        """Path of a shard, compared with the index when it is first asked for."""
        path = self.folder / name
        if self._hashes and name not in self._checked:
            if not path.is_file():
                raise ValueError(f"{path} is missing, which {INDEX} promises")
            if of_whole_file(path) != self._hashes.get(name):
                raise ValueError(f"{path} is not the file that {INDEX} was written for (its SHA-256 differs); "
                                 "prepare-data makes it anew")
            self._checked.add(name)
        return path

    def latent(self, sample: Sample) -> np.ndarray:
        """Latent of a sample, fp32 [16, T, h, w]; ValueError where its shard is not as the index promises."""
        tensors, _, _ = self._clips(sample.shard)
        if sample.name not in tensors:
            raise ValueError(f"{self.folder / clips_shard(sample.shard)} does not hold the sample {sample.name} that "
                             f"{INDEX} promises")
        return tensors[sample.name].numpy().astype(np.float32)

    def record(self, sample: Sample) -> dict:
        """What `prepare-data` wrote down about a sample: a dict with path, bucket, start, motion, ..."""
        _, samples, _ = self._clips(sample.shard)
        return next(record for record in samples if record["name"] == sample.name)

    def text(self, sample: Sample, choice: int) -> tuple[np.ndarray, str]:
        """(embedding fp32 [length, text_dim], caption) of text number `choice` of a sample; raises as `latent`."""
        embeddings, captions = self._texts(sample.shard)
        number, path = sample.texts[choice], self.folder / text_shard(sample.shard)
        if number >= len(captions):
            raise ValueError(f"{path} does not hold text {number} of {sample.name}, which {INDEX} promises")
        return self._embedding(embeddings[number], path), captions[number]

    def empty_text(self) -> np.ndarray:
        """Embedding of the empty text, fp32 [length, text_dim]; raises as `latent`."""
        path = self._indexed(EMPTY_TEXT)
        embeddings, _ = read_texts(path)
        if len(embeddings) != 1:
            raise ValueError(f"{path} holds {len(embeddings)} texts instead of the empty one")
        return self._embedding(embeddings[0], path)

    def _embedding(self, stored: StoredTensor, path: Path) -> np.ndarray:
        """fp32 [length, text_dim]; ValueError where it has not the shape that the index says."""
        if len(stored.shape) != 2 or not 1 <= stored.shape[0] <= self.text_len or stored.shape[1] != self.text_dim:
            raise ValueError(f"{path} holds an embedding {list(stored.shape)}; {INDEX} promises "
                             f"[1 to {self.text_len}, {self.text_dim}]")
        return stored.numpy().astype(np.float32)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
