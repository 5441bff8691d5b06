"""The clips of the data set in latent space, kept in a file from one training stage to the next where asked for."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tools.tiny_family import digits
from tools.tiny_family.models import to_video

RENDER_CHUNK = 4096
ENCODE_BATCH = 32


def encoded_clips(seed, count, vae, arguments, log):
    """(latents fp32 [count, 16, T, h, w] on the device, captions) of the first `count` clips of data set `seed`.

    With `arguments.latent_cache` latents come from that file if it was made with the same seed, count and VAE, and are
    written to it otherwise (as fp16).
    """
    device, cache = arguments.device, arguments.latent_cache
    began = time.perf_counter()
    identity = {"seed": str(seed), "count": str(count), "vae": hashlib.sha256(arguments.vae.read_bytes()).hexdigest()}
    cached = _read(cache, identity) if cache else None
    if cached is not None:
        latents, captions = cached.to(device).float(), digits.captions_of_clips(seed, 0, count)
    else:
        latents, captions = _encode(seed, count, vae, device, arguments.workers)
        if cache:
            save_file({"latents": latents.half().cpu()}, str(cache), metadata=identity)
    log.result(clips=count, from_cache=cached is not None, seconds_of_encoding=round(time.perf_counter() - began, 1),
               latent_mean=round(latents.mean().item(), 4), latent_std=round(latents.std().item(), 4))
    return latents, captions


def _read(cache, identity):
    if not Path(cache).is_file():
        return None
    with safe_open(str(cache), framework="pt") as file:
        return file.get_tensor("latents") if file.metadata() == identity else None


@torch.no_grad()
def _encode(seed, count, vae, device, workers):
    """Draws the next chunk of clips while the device encodes this one."""
    starts = range(0, count, RENDER_CHUNK)

    def draw(start):
        return digits.make_clips(seed, start, min(RENDER_CHUNK, count - start), workers=workers)

    latents, captions = [], []
    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(draw, starts[0])
        for start in starts:
            clips, texts, _ = following.result()
            if start + RENDER_CHUNK < count:
                following = ahead.submit(draw, start + RENDER_CHUNK)
            captions += texts
            latents += [vae.encode(to_video(chunk, device)) for chunk in torch.from_numpy(clips).split(ENCODE_BATCH)]
    return torch.cat(latents), captions
