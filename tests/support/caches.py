"""A small cache of random latents for the tests of what reads it."""

import numpy as np

from ospnext_ms.data.cache import EMPTY_TEXT, Sample, clips_shard, text_shard, write_clips, write_index, write_texts

BUCKETS = [(32, 48, 9), (48, 32, 9), (32, 32, 5)]
SHARD = 4


def make_cache(folder, counts=(6, 3, 2), dtype=np.float32, text_dim=8):
    """Writes a cache of sum(counts) samples over BUCKETS; sample i's latent is filled with i, and captions 2i and 2i+1
    of its shard, with texts "clip i" and "film i", have embeddings filled with i and -i - 0.5."""
    buckets = [bucket for bucket, count in enumerate(counts) for _ in range(count)]
    samples = []
    for shard in range(-(-len(buckets) // SHARD)):
        latents, captions, embeddings, records = {}, [], [], []
        for i in range(shard * SHARD, min((shard + 1) * SHARD, len(buckets))):
            height, width, frames = BUCKETS[buckets[i]]
            name = f"{i:08d}-0"
            latents[name] = np.full((16, (frames - 1) // 4 + 1, height // 8, width // 8), i, dtype)
            samples.append(Sample(name, shard, buckets[i], (len(captions), len(captions) + 1)))
            captions += [f"clip {i}", f"film {i}"]
            embeddings += [np.full((i % 3 + 1, text_dim), i, dtype), np.full((2, text_dim), -i - 0.5, dtype)]
            records.append({"name": name, "bucket": buckets[i]})
        write_clips(folder / clips_shard(shard), latents, records, [])
        write_texts(folder / text_shard(shard), captions, embeddings)
    write_texts(folder / EMPTY_TEXT, [""], [np.full((1, text_dim), 99, dtype)])
    write_index(folder, contents="latents", fps=8, buckets=BUCKETS, text_len=4, text_dim=text_dim, samples=samples)
    return samples
