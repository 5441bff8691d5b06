"""The tiny family's clips as files: the clips and captions of digits.py, and a manifest that prepare-data reads."""

import numpy as np
import pytest

from ospnext_ms.data.clips import probe
from ospnext_ms.data.manifest import read_manifest
from ospnext_ms.data.video import read_video
from tools.tiny_family import digits
from tools.tiny_family.write_videos import write_videos


def test_clips_and_captions(tmp_path):
    folder = tmp_path / "videos"
    write_videos(folder, 3, seed=2, start=5, split="held_out")
    clips, captions, _ = digits.make_clips(2, 5, 3, "held_out")
    entries = read_manifest(folder / "manifest.jsonl")
    assert [(entry.path, entry.captions) for entry in entries] == [
        (f"clip_{5 + i:06d}.mp4", (caption,)) for i, caption in enumerate(captions)]
    for entry, clip in zip(entries, clips, strict=True):
        assert probe(folder / entry.path).fps == digits.FPS
        assert np.abs(read_video(folder / entry.path).astype(int) - clip).mean() < 2
    with pytest.raises(FileExistsError):
        write_videos(folder, 1)
    with pytest.raises(ValueError, match="count is 0"):
        write_videos(tmp_path / "none", 0)
