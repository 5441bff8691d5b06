"""The tiny family's clips as captioned mp4 files with a manifest, for `python -m ospnext_ms prepare-data`.

    python -m tools.tiny_family.write_videos --output output/digits --count 512

Clip i depends on the seed and i alone. The folder appears when it is complete.
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ospnext_ms.data.manifest import write_manifest
from ospnext_ms.data.video import write_mp4
from ospnext_ms.storage.files import atomic_folder
from tools.tiny_family import digits, looks

CRF = 12
CHUNK = 64


def write_videos(folder, count, seed=0, start=0, split="train", look="plain", workers=2):
    """Writes clips `start` ... `start + count - 1` of data set `seed` as clip_NNNNNN.mp4, and manifest.jsonl.

    Raises:
        FileExistsError: the folder exists.
        ValueError: `count` below 1, an unknown split or look.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    with atomic_folder(folder) as temporary, open(temporary / "manifest.jsonl", "w", encoding="utf-8") as manifest:
        for first in tqdm(range(start, start + count, CHUNK), unit="chunk", dynamic_ncols=True):
            number = min(CHUNK, start + count - first)
            clips, captions = make_clips(seed, first, number, split, look, workers)
            names = [f"clip_{first + i:06d}.mp4" for i in range(number)]
            for name, clip in zip(names, clips, strict=True):
                write_mp4(temporary / name, clip, digits.FPS, CRF)
            write_manifest(manifest, zip(names, captions, strict=True))


def make_clips(seed, start, count, split, look, workers=2):
    """(clips uint8 [count, 17, 128, 128, 3], captions) of digits.make_clips, in a look; the captions do not tell it."""
    if look == "plain":
        return digits.make_clips(seed, start, count, split, workers)[:2]
    clips, captions = [], []
    for i in range(start, start + count):
        rng = np.random.default_rng([seed, i])
        label = digits.draw_label(rng)
        captions.append(digits.caption_of(label, rng))
        clips.append(digits.render(label, rng, split, lambda glyph: looks.draw(glyph, look)))
    return np.stack(clips), captions


def main():
    parser = argparse.ArgumentParser(description="Write captioned clips of moving digits as mp4 files.")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--count", type=int, required=True, help="number of clips")
    parser.add_argument("--seed", type=int, default=0, help="data set; another than the one of training is other clips")
    parser.add_argument("--start", type=int, default=0, help="number of the first clip")
    parser.add_argument("--split", choices=digits.SPLITS, default="train", help="scans that may be shown")
    parser.add_argument("--look", choices=looks.LOOKS, default="plain", help="how digits are drawn (see looks.py)")
    write_videos(**{"folder" if name == "output" else name: value
                    for name, value in vars(parser.parse_args()).items()})


if __name__ == "__main__":
    main()
