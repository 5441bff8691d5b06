"""The tiny family's clips as a cache: what training reads of it, without the packages of videos."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from ospnext_ms.data.latents import LatentDataset
from tools.tiny_family import digits, models, write_cache
from tools.tiny_family.recipe import load_recipe


def test_a_cache_of_the_clips(tmp_path):
    write_cache.write_cache(tmp_path / "cache", 2, seed=1, split="held_out")
    clips, captions, _ = digits.make_clips(1, 0, 2, "held_out")
    dataset = LatentDataset(tmp_path / "cache", batch_size=2, seed=0, text_len=32)
    vae = models.load_vae(load_recipe().vae_model, write_cache.WEIGHTS / "vae.safetensors", "cpu")
    for i in range(2):
        latent, text, caption = dataset.sample(i)
        assert caption == captions[i]
        assert text.shape == (32, 64)
        assert np.abs(text[0]).sum() > 0
        assert not text[20:].any()
        with torch.no_grad():
            expected = vae.encode(models.to_video(clips[i : i + 1], "cpu"))[0]
        np.testing.assert_allclose(latent, expected, atol=1e-5)
    with pytest.raises(ValueError, match="count is 0"):
        write_cache.write_cache(tmp_path / "none", 0)


def test_the_experiments_on_a_gpu_need_no_video_package():
    """Nor MindSpore: the machines with a GPU have neither."""
    code = ("import sys\nfor name in ('av', 'ftfy', 'mindspore', 'mindformers'): sys.modules[name] = None\n"
            "import tools.experiments.hif8_experiment_torch, tools.experiments.wide_start")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
