"""`python -m ospnext_ms prepare-data`: from a manifest of videos to a cache that training reads.

Work goes shard by shard: a shard of clips covers a fixed range of manifest lines and appears under its name when it is
complete, so a run that was killed goes on with the first shard that is missing, and several processes can share a run.
"""

import dataclasses
import hashlib
import itertools
import json
import time
from functools import partial
from pathlib import Path

from ospnext_ms.data import cache
from ospnext_ms.data.manifest import read_manifest
from ospnext_ms.preparation.report import make_report
from ospnext_ms.preparation.selection import CRASHED, LeftOut, load_entry
from ospnext_ms.preparation.workers import map_in_order
from ospnext_ms.reporting.progress import progress_bar
from ospnext_ms.storage import fingerprint

# Of the configuration, those on which the contents of a cache depend.
_SECTIONS = ("clips", "filters", "cache")


def prepare(config, part=(0, 1)):
    """Makes the cache of a PrepareDataConfig, or finishes one that was begun.

    Args:
        part: (i, n), this process makes the shards i, i + n, ...

    Returns:
        The report (also written as report.json), or None where shards of other parts are still missing.

    Raises:
        FileNotFoundError, ValueError: the manifest, a checkpoint or the tokenizer is missing or does not fit, or the
            folder holds a cache of other settings, or no clip was kept.
        FloatingPointError: a network returned values that are not finite.
    """
    entries = read_manifest(config.manifest)
    _check_settings(config)
    size = config.cache.entries_per_shard
    shards = [entries[i : i + size] for i in range(0, len(entries), size)]
    mine = range(part[0], len(shards), part[1])
    seconds = {"clips": _make_clips(config, shards, mine), "texts": _make_texts(config, mine)}
    return _finish(config, entries, len(shards), seconds)


def _make_clips(config, shards, mine):
    """Makes the missing shards of clips; returns the seconds it took."""
    folder, began = Path(config.output_dir), time.perf_counter()
    missing = [number for number in mine if not _is_whole(folder / cache.clips_shard(number), cache.read_clips)]
    if not missing:
        return 0.0
    encode = _load_clip_encoder(config)
    stored_dtype = cache.STORED_DTYPES[config.cache.dtype]
    total, left = sum(len(shards[number]) for number in mine), sum(len(shards[number]) for number in missing)
    todo = itertools.chain.from_iterable(shards[number] for number in missing)
    load = partial(load_entry, config=config)
    results = map_in_order(load, todo, config.workers, _crashed)
    kept = dropped = 0
    with progress_bar("clips", "video", total, initial=total - left) as bar:
        for number in missing:
            latents, samples, left_out = {}, [], []
            for entry in shards[number]:
                clips, rejected = next(results)
                left_out += [dataclasses.asdict(item) for item in rejected]
                for clip in clips:
                    samples.append(clip.record | {"captions": list(entry.captions)})
                    if encode is not None:
                        latents[clip.name] = encode(clip.frames).astype(stored_dtype)
                kept, dropped = kept + len(clips), dropped + len(rejected)
                bar.set_postfix_str(f"{kept} clips, {dropped} left out")
                bar.update()
            cache.write_clips(folder / cache.clips_shard(number), latents, samples, left_out)
    return time.perf_counter() - began


def _crashed(entry):
    return [], [LeftOut(entry.line, entry.path, CRASHED, "the process that read it died, twice")]


def _load_clip_encoder(config):
    """The VAE, or None where the cache holds videos."""
    if config.cache.contents == "videos":
        return None
    from ospnext_ms.generation.coders import ClipEncoder
    from ospnext_ms.runtime import start

    return ClipEncoder(config.model.vae, start(config.context))


def _make_texts(config, mine):
    """Makes the missing shards of text embeddings; returns the seconds it took."""
    folder, began = Path(config.output_dir), time.perf_counter()
    targets = {folder / cache.text_shard(number): partial(_captions, folder, number) for number in mine}
    targets[folder / cache.EMPTY_TEXT] = lambda: [""]
    missing = {path: captions for path, captions in targets.items() if not _is_whole(path, cache.read_texts)}
    if not missing:
        return 0.0
    from ospnext_ms.generation.coders import TextEncoder
    from ospnext_ms.runtime import release_memory, start

    runtime = start(config.context)
    release_memory()
    encode = TextEncoder(config.model.text_encoder, config.model.text_len, runtime)
    stored_dtype = cache.STORED_DTYPES[config.cache.dtype]
    done = len(targets) - len(missing)
    with progress_bar("texts", "shard", len(targets), initial=done) as bar:
        for path, captions in missing.items():
            texts = captions()
            cache.write_texts(path, texts, [embedding.astype(stored_dtype) for embedding in encode(texts)])
            bar.update()
    return time.perf_counter() - began


def _captions(folder, number):
    """The distinct captions of a shard of clips, in order of appearance."""
    _, samples, _ = cache.read_clips(folder / cache.clips_shard(number))
    return list(dict.fromkeys(caption for sample in samples for caption in sample["captions"]))


def _is_whole(path, read):
    """Whether a shard is there and can be read; one that is damaged is named and will be made again."""
    if not path.is_file():
        return False
    promised = cache.indexed_hashes(path.parent).get(path.name)
    try:
        read(path)
        if promised and fingerprint.of_whole_file(path) != promised:
            raise ValueError(f"{path} is not the file that {cache.INDEX} was written for")
    except (ValueError, OSError) as error:
        print(f"{error}; it is made again")
        return False
    return True


def _finish(config, entries, num_shards, seconds):
    """Writes index and report where all shards are there; returns the report, or None."""
    folder = Path(config.output_dir)
    names = [name(number) for number in range(num_shards) for name in (cache.clips_shard, cache.text_shard)]
    if not all((folder / name).is_file() for name in names):
        return None
    samples, records, left_out, longest = [], [], [], 1
    for number in range(num_shards):
        _, in_shard, left_out_of_shard = cache.read_clips(folder / cache.clips_shard(number))
        embeddings, captions = cache.read_texts(folder / cache.text_shard(number))
        position = {caption: i for i, caption in enumerate(captions)}
        for record in in_shard:
            texts = tuple(position[caption] for caption in record["captions"])
            samples.append(cache.Sample(record["name"], number, record["bucket"], texts))
        longest = max([longest, *(embedding.shape[0] for embedding in embeddings)])
        records += in_shard
        left_out += left_out_of_shard
    report = make_report(config, len(entries), records, left_out, seconds)
    cache.write_json(folder / cache.REPORT, report)
    if not samples:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in report["left_out_counts"].items())
        raise ValueError(f"no clip of the {len(entries)} videos was kept ({reasons}); "
                         f"{folder / cache.REPORT} names each")
    root = str(config.folder_of_videos) if config.cache.contents == "videos" else None
    cache.write_index(folder, contents=config.cache.contents, fps=config.clips.fps, buckets=config.clips.buckets,
                      text_len=longest, text_dim=config.model.text_encoder.dim, samples=samples, video_root=root)
    return report


def _check_settings(config):
    """Writes settings.json, or compares it with what the folder's cache was begun with."""
    path, settings = Path(config.output_dir) / cache.SETTINGS, _settings(config)
    if not path.is_file():
        foreign = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        if foreign:
            raise ValueError(f"output_dir {path.parent} holds other things ({', '.join(foreign[:5])}); give an empty "
                             "or a new folder")
        cache.write_json(path, settings)
        return
    # A cache begun before there was a key was made as its default says.
    begun = _defaults(config) | _read_settings(path)
    changed = [f"{key}: {begun.get(key)!r} then, {settings.get(key)!r} now"
               for key in {**begun, **settings} if begun.get(key) != settings.get(key)]
    if changed:
        raise ValueError(f"{path.parent} holds a cache of other settings; give another output_dir or remove it:\n"
                         + "\n".join(changed))


def _read_settings(path):
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(settings, dict):
            return settings
        problem = f"it holds a {type(settings).__name__}"
    except (ValueError, RecursionError) as error:
        problem = str(error)
    raise ValueError(f"{path}, which says how the cache there was begun, cannot be read ({problem}); remove the folder "
                     "or give another output_dir")


def _defaults(config):
    """The settings that have one, without those of the networks."""
    return {f"{name}.{field.name}": field.default for name in _SECTIONS
            for field in dataclasses.fields(getattr(config, name)) if field.default is not dataclasses.MISSING}


def _settings(config):
    """All that the contents of the cache depend on, as plain JSON values."""
    model, sections = config.model, {}
    for name in _SECTIONS:
        values = dataclasses.asdict(getattr(config, name))
        sections |= {f"{name}.{key}": value for key, value in values.items()}
    tokenizer = sorted(Path(model.text_encoder.tokenizer).iterdir())
    sections |= {"model.text_len": model.text_len, "format": cache.FORMAT,
                 "manifest": hashlib.sha256(Path(config.manifest).read_bytes()).hexdigest(),
                 "model.text_encoder.checkpoint": fingerprint.of_checkpoint(model.text_encoder.checkpoint),
                 "model.text_encoder.tokenizer": fingerprint.of_files(tokenizer)}
    if model.vae:
        sections |= {"model.vae.checkpoint": fingerprint.of_checkpoint(model.vae.checkpoint),
                     "model.vae.tiles": [model.vae.tile_size, model.vae.tile_overlap]}
    return json.loads(json.dumps(sections))
