"""Time of a whole video: every sampling step with guidance, and the VAE's decoding; full and sparse, random weights,
with and without a step cache.
"""

import math
import time
from itertools import product
from statistics import median

import torch

from ospnext_ms.config.generate import StepCacheSection
from ospnext_ms.models.config import VAEConfig
from tools.torch_reference.flow import sample
from tools.torch_reference.gpu.forward import prepare
from tools.torch_reference.gpu.sequence import PackedSequence
from tools.torch_reference.gpu.settings import random_inputs, random_model
from tools.torch_reference.gpu.timing import peak_memory_gib, reset_peak_memory, synchronize
from tools.torch_reference.step_cache import CachedDiT
from tools.torch_reference.vae import WanVAE

STEPS, GUIDANCE, SHIFT = 50, 5.0, 5.0
# Base width of Wan2.1's VAE.
VAE_DIM = 96


class OneByOne:
    """The network on one sample after the other, so that the two branches of guidance are never copied apart.

    `seconds`: of every call of both branches, those of `project`, which reuse an earlier one, in `reused_seconds`.
    """

    def __init__(self, model, device):
        self.model, self.device, self.seconds, self.reused_seconds = model, device, [], []

    def _each(self, function, arguments, seconds):
        begin = time.perf_counter()
        outs = [function(*(each[i : i + 1] for each in arguments)) for i in range(arguments[0].shape[0])]
        synchronize(self.device)
        seconds.append(time.perf_counter() - begin)
        return outs

    def __call__(self, x, t, text):
        return torch.cat(self._each(self.model, (x, t, text), self.seconds))

    def forward_with_added(self, x, t, text):
        outs = self._each(self.model.forward_with_added, (x, t, text), self.seconds)
        return tuple(torch.cat(each) for each in zip(*outs, strict=True))

    def project(self, x, t, added):
        return torch.cat(self._each(self.model.project, (x, t, added), self.reused_seconds))


def spread_reused(steps, count):
    """For each step whether it reuses an earlier one: `count` of them, evenly after the part that a step cache always
    computes (StepCacheSection). Random weights know no better; the time is the same whichever they are.

    Raises ValueError where so many do not fit, at least every other step computed.
    """
    first = max(1, math.ceil(StepCacheSection.first_share * steps))
    rest = steps - first
    if not 0 <= 2 * count <= rest:
        raise ValueError(f"{count} of {steps} steps reuse another; valid: 0 to {rest // 2}")
    return [False] * first + [(i + 1) * count // rest > i * count // rest for i in range(rest)]


def measure_videos(args, config, grid, device, dtype, backends, result, guard):
    """Appends a row to result["videos"] for every mode and number of reused steps: args.video_steps steps (None:
    STEPS), then the decoder.

    With fewer than STEPS steps the total is worked out for STEPS of them.
    """
    result["videos"] = []
    for mode, reused in product(args.mode, args.video_reused):
        row = guard(f"video, {mode}", lambda m=mode, r=reused: _measure(
            args, config, grid, device, dtype, backends, m, r))
        if row is not None:
            result["videos"].append(row)
            _print_row(row)
        reset_peak_memory(device)


def _measure(args, config, grid, device, dtype, backends, mode, reused):
    steps = args.video_steps or STEPS
    sequence = PackedSequence(config.sparse_ratio)
    model = prepare(random_model(config, device, dtype), mode, args.kernels[0], backends, sequence, args.keep_bf16[0])
    noise, _, text = random_inputs(config, grid, device)
    no_text = torch.zeros_like(text)
    dit = OneByOne(model, device)
    velocity = CachedDiT(dit, spread_reused(steps, reused)) if reused else dit
    with torch.inference_mode():
        dit(noise, torch.full((1,), 500.0, device=device), text)
        dit.seconds.clear()
        reset_peak_memory(device)
        begin = time.perf_counter()
        latent = sample(velocity, noise, text, no_text, steps, SHIFT, GUIDANCE)
        synchronize(device)
        sampling = time.perf_counter() - begin
        peak = peak_memory_gib(device)
        del model, dit.model, velocity
        reset_peak_memory(device)
        video, decoding = decode(latent, device, dtype)
    assert video.isfinite().all(), "the video is not finite"
    step = median(dit.seconds)
    measured = steps == STEPS
    return {"mode": mode, "steps": steps, "steps_reused": reused, "video": list(video.shape), "step_seconds": step,
            "reused_step_seconds": median(dit.reused_seconds) if reused else None,
            "sampling_seconds": sampling, "decode_seconds": decoding, "peak_memory_gib": peak,
            "decode_peak_memory_gib": peak_memory_gib(device),
            "total_seconds": (sampling if measured else STEPS * step) + decoding, "total_is_measured": measured}


def decode(latent, device, dtype):
    """(video [B, 3, F, H, W], seconds) by a VAE with random weights; its first call, which chooses kernels, apart."""
    torch.manual_seed(0)
    with torch.device(device):
        vae = WanVAE(VAEConfig(dim=VAE_DIM)).to(dtype)
    choice, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        vae.decode(latent[:, :, :3].to(dtype))
        synchronize(device)
        begin = time.perf_counter()
        video = vae.decode(latent.to(dtype))
        synchronize(device)
        return video, time.perf_counter() - begin
    finally:
        torch.backends.cudnn.benchmark = choice


def _print_row(row):
    frames, height, width = row["video"][2:]
    how = "measured" if row["total_is_measured"] else f"worked out for {STEPS} steps"
    memory = "" if row["peak_memory_gib"] is None else (
        f", peak {row['peak_memory_gib']:.1f} GiB, of the decoder {row['decode_peak_memory_gib']:.1f} GiB")
    reused = "" if not row["steps_reused"] else (
        f", {row['steps_reused']} of them reusing another (median {1e3 * row['reused_step_seconds']:.1f} ms),")
    print(f"{row['mode']}: {frames} frames of {width}x{height}, "
          f"{row['steps']} steps{reused} in {row['sampling_seconds']:.1f} s (median {row['step_seconds']:.3f} s), "
          f"decoding {row['decode_seconds']:.1f} s, total {row['total_seconds']:.1f} s {how}{memory}", flush=True)
