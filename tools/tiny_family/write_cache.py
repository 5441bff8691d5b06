"""The tiny family's clips as a cache of latents, without mp4 files and their losses: for a machine with a GPU.

    python -m tools.tiny_family.write_cache --output output/digits_cache --count 256 --device cuda
    python -m tools.tiny_family.write_cache --output output/digits_held_out_cache --count 16 --seed 1 \\
        --split held_out --device cuda

The clips are those of write_videos, encoded by the PyTorch reference in fp32; the folder is in the form of
`python -m ospnext_ms prepare-data --config yaml_configs/prepare_data/tiny.yaml` and appears when it is complete.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from ospnext_ms.data import cache
from ospnext_ms.storage.files import atomic_folder
from tools.tiny_family import digits, models
from tools.tiny_family.loop import precision_context
from tools.tiny_family.recipe import FOLDER, load_recipe
from tools.tiny_family.tokenizer import tokenize

WEIGHTS = FOLDER / "weights"
ENCODE_BATCH = 16


@torch.no_grad()
def encode_clips(clips, device, weights=WEIGHTS):
    """uint8 [N, F, H, W, 3] -> latents fp32 [N, 16, T, h, w] on the device."""
    vae = models.load_vae(load_recipe().vae_model, weights / "vae.safetensors", device)
    with precision_context("fp32", device):
        return torch.cat([vae.encode(models.to_video(chunk, device))
                          for chunk in torch.from_numpy(clips).split(ENCODE_BATCH)])


@torch.no_grad()
def encode_texts(texts, device, weights=WEIGHTS):
    """Embeddings of the texts, a list of fp32 [length, text_dim]."""
    recipe = load_recipe()
    encoder = models.load_text_encoder(recipe.text_encoder, weights / "umt5.safetensors", device)
    tokenizer = AutoTokenizer.from_pretrained(weights / "tokenizer", local_files_only=True)
    ids, mask = tokenize(tokenizer, list(texts), recipe.dit_sparse.text_len)
    embeddings = encoder(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)).float().cpu().numpy()
    return [embedding[:length] for embedding, length in zip(embeddings, mask.sum(1), strict=True)]


def write_cache(folder, count, seed=0, split="train", device="cpu", workers=2):
    """Writes clips 0 ... count - 1 of data set `seed` as a cache of one shard.

    Raises:
        FileExistsError: the folder exists. ValueError: `count` below 1 or an unknown split.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    clips, captions, _ = digits.make_clips(seed, 0, count, split, workers)
    latents = encode_clips(clips, device).float().cpu().numpy()
    names = [f"{i + 1:08d}-0" for i in range(count)]
    records = [{"name": name, "bucket": 0, "captions": [caption]}
               for name, caption in zip(names, captions, strict=True)]
    distinct = list(dict.fromkeys(captions))
    embeddings = encode_texts([*distinct, models.NEGATIVE_PROMPT], device)
    samples = [cache.Sample(name, 0, 0, (distinct.index(caption),))
               for name, caption in zip(names, captions, strict=True)]
    with atomic_folder(folder) as temporary:
        cache.write_clips(temporary / cache.clips_shard(0), dict(zip(names, latents, strict=True)), records, [])
        cache.write_texts(temporary / cache.text_shard(0), distinct, embeddings[:-1])
        cache.write_texts(temporary / cache.EMPTY_TEXT, [models.NEGATIVE_PROMPT], embeddings[-1:])
        cache.write_index(temporary, contents="latents", fps=float(digits.FPS),
                          buckets=[(digits.FRAME_SIZE, digits.FRAME_SIZE, digits.NUM_FRAMES)],
                          text_len=int(np.max([len(embedding) for embedding in embeddings])),
                          text_dim=embeddings[0].shape[1], samples=samples)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--count", type=int, required=True, help="number of clips")
    parser.add_argument("--seed", type=int, default=0, help="data set; another than the one of training is other clips")
    parser.add_argument("--split", choices=digits.SPLITS, default="train", help="scans that may be shown")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    write_cache(**{"folder" if name == "output" else name: value
                   for name, value in vars(parser.parse_args()).items()})


if __name__ == "__main__":
    main()
