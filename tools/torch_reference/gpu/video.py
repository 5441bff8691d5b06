"""Time of a whole video: every sampling step with guidance, and the VAE's decoding; full and sparse, random weights."""

import time
from statistics import median

import torch

from ospnext_ms.models.config import VAEConfig
from tools.torch_reference.flow import sample
from tools.torch_reference.gpu.forward import prepare
from tools.torch_reference.gpu.sequence import PackedSequence
from tools.torch_reference.gpu.settings import random_inputs, random_model
from tools.torch_reference.gpu.timing import peak_memory_gib, reset_peak_memory, synchronize
from tools.torch_reference.vae import WanVAE

STEPS, GUIDANCE, SHIFT = 50, 5.0, 5.0
# Base width of Wan2.1's VAE.
VAE_DIM = 96


class OneByOne:
    """The network on one sample after the other, so that the two branches of guidance are never copied apart.

    `seconds`: of every call of both branches.
    """

    def __init__(self, model, device):
        self.model, self.device, self.seconds = model, device, []

    def __call__(self, x, t, text):
        begin = time.perf_counter()
        out = torch.cat([self.model(*(each[i : i + 1] for each in (x, t, text))) for i in range(x.shape[0])])
        synchronize(self.device)
        self.seconds.append(time.perf_counter() - begin)
        return out


def measure_videos(args, config, grid, device, dtype, backends, result, guard):
    """Appends a row a mode to result["videos"]: args.video_steps steps (None: STEPS), then the decoder.

    With fewer than STEPS steps the total is worked out for STEPS of them.
    """
    result["videos"] = []
    for mode in args.mode:
        row = guard(f"video, {mode}", lambda m=mode: _measure(args, config, grid, device, dtype, backends, m))
        if row is not None:
            result["videos"].append(row)
            _print_row(row)
        reset_peak_memory(device)


def _measure(args, config, grid, device, dtype, backends, mode):
    steps = args.video_steps or STEPS
    sequence = PackedSequence(config.sparse_ratio)
    model = prepare(random_model(config, device, dtype), mode, args.kernels[0], backends, sequence, args.keep_bf16[0])
    noise, _, text = random_inputs(config, grid, device)
    no_text = torch.zeros_like(text)
    dit = OneByOne(model, device)
    with torch.inference_mode():
        dit(noise, torch.full((1,), 500.0, device=device), text)
        dit.seconds.clear()
        reset_peak_memory(device)
        begin = time.perf_counter()
        latent = sample(dit, noise, text, no_text, steps, SHIFT, GUIDANCE)
        synchronize(device)
        sampling = time.perf_counter() - begin
        peak = peak_memory_gib(device)
        del model, dit.model
        reset_peak_memory(device)
        video, decoding = decode(latent, device, dtype)
    assert video.isfinite().all(), "the video is not finite"
    step = median(dit.seconds)
    measured = steps == STEPS
    return {"mode": mode, "steps": steps, "video": list(video.shape), "step_seconds": step,
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
    print(f"{row['mode']}: {frames} frames of {width}x{height}, "
          f"{row['steps']} steps in {row['sampling_seconds']:.1f} s (median {row['step_seconds']:.3f} s), "
          f"decoding {row['decode_seconds']:.1f} s, total {row['total_seconds']:.1f} s {how}{memory}", flush=True)
