"""Stage `vae`: reconstruction of the clips, then an exact change of the latents' scale.

Wan's per-channel latent mean and standard deviation are part of the VAE's definition (`encode` subtracts and divides),
so a new VAE has to produce latents of these statistics. Here it is trained freely and its latents are measured; the
affine map that gives them the wanted statistics is folded into the two 1x1x1 convolutions on both sides of the latent.
"""

import time

import numpy as np
import torch

from tools.tiny_family import digits, judge
from tools.tiny_family.loop import Budget, Ema, StageLog, precision_context, save_weights
from tools.tiny_family.models import load_vae, reconstruct, to_video
from tools.tiny_family.recorded import RecordedStep
from tools.tiny_family.sheet import write_sheet
from tools.torch_reference.vae import WanVAE

HELD_OUT_SEED = 1_000_003
# A channel that hardly varies carries nothing; blowing it up to unit variance would only add noise to model.
MIN_CHANNEL_STD = 0.02
# With the usual start (log-variance near 0) the posterior's noise is thirty times the latents' spread: the decoder
# learns to ignore them and to paint everything black.
INITIAL_LOG_VARIANCE = -8.0


def train_vae(recipe, arguments):
    """Trains the autoencoder and writes vae.safetensors, vae.json and vae.png into the output folder."""
    stage, output, device, workers = recipe.vae, arguments.output, arguments.device, arguments.workers
    torch.manual_seed(recipe.seed)
    began = time.perf_counter()
    clips, _, _ = digits.make_clips(recipe.seed, 0, stage.num_clips, workers=workers)
    print(f"{stage.num_clips} clips drawn in {time.perf_counter() - began:.1f} s", flush=True)
    clips = torch.from_numpy(clips).to(device)
    vae = WanVAE(recipe.vae_model, latents_per_chunk=None).to(device)
    with torch.no_grad():
        vae.conv1.bias[recipe.vae_model.z_dim :] += INITIAL_LOG_VARIANCE
    budget = Budget(stage.minutes, stage.max_steps)
    log = StageLog(budget)
    _optimise(vae, clips, stage, budget, log, recipe.seed)
    normalise_latents(vae, clips[: stage.normalise_clips], log)
    path = output / "vae.safetensors"
    save_weights(vae, path)
    if not arguments.skip_evaluation:
        saved = load_vae(recipe.vae_model, path, device)
        evaluate_vae(saved, stage.evaluation_clips, output / "vae.png", log, device, workers)
    log.write(output / "vae.json")


def _optimise(vae, clips, stage, budget, log, seed):
    device = clips.device
    generator = torch.Generator(device).manual_seed(seed)
    rate = torch.tensor(stage.learning_rate, device=device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=rate, betas=(0.9, 0.98), capturable=device.type == "cuda")
    ema = Ema(vae, stage.ema_decay)

    def update(video):
        with precision_context(stage.precision, device):
            pixel, edge, divergence = losses(vae, video)
            loss = pixel + stage.edge_weight * edge + stage.kl_weight * divergence
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        return {"loss": loss.detach(), "pixel": pixel.detach(), "edge": edge.detach(), "kl": divergence.detach()}

    step = RecordedStep(update, device)
    while budget.progress < 1:
        phase = next((phase for phase in stage.phases if budget.progress < phase.until), stage.phases[-1])
        rate.fill_(stage.learning_rate * budget.learning_rate_factor())
        figures = step(draw_crops(clips, phase, generator))
        ema.update()
        budget.advance()
        log.note(figures | {"learning_rate": rate})
    ema.copy_to_module()


def losses(vae, video):
    """(L1 plus squared error, L1 error of spatial differences, mean KL divergence to N(0, 1) per latent element).

    L1 alone is content with the median of a pixel, which is black.
    """
    mean, log_var = vae.encode_moments(video)
    mean, log_var = mean.float(), log_var.float().clamp(-20, 10)
    decoded = vae.decode_raw(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)).float()
    error = decoded - video
    edge = error.diff(dim=3).abs().mean() + error.diff(dim=4).abs().mean()
    divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()
    return error.abs().mean() + error.square().mean(), edge, divergence


def draw_crops(clips, phase, generator):
    """Random clips cut to phase.frames frames and a square of phase.crop pixels that holds a bright pixel."""
    count, frames, height, width, _ = clips.shape
    device = clips.device

    def draw(high, shape=(phase.batch_size,)):
        return torch.randint(high, shape, generator=generator, device=device)

    start = int(draw(frames - phase.frames + 1, (1,)))
    chosen = clips[draw(count), start : start + phase.frames]
    if phase.crop < height:
        brightness = chosen[:, phase.frames // 2].amax(-1).flatten(1).float() + 1e-3
        centre = torch.multinomial(brightness, 1, generator=generator)[:, 0]
        top = (centre // width - draw(phase.crop)).clamp(0, height - phase.crop)
        left = (centre % width - draw(phase.crop)).clamp(0, width - phase.crop)
        span = torch.arange(phase.crop, device=device)
        batch = torch.arange(phase.batch_size, device=device)[:, None, None]
        rows, columns = (top[:, None] + span)[:, :, None], (left[:, None] + span)[:, None]
        chosen = chosen.permute(0, 2, 3, 1, 4)[batch, rows, columns].permute(0, 3, 1, 2, 4)
    return to_video(chosen, device)


@torch.no_grad()
def channel_statistics(vae, clips, batch_size=16):
    """Mean and standard deviation of every channel of mu over clips uint8 [N, F, H, W, 3], float64 [16] each."""
    means = torch.cat([vae.encode_moments(to_video(chunk, chunk.device))[0].double()
                       for chunk in clips.split(batch_size)])
    return means.mean((0, 2, 3, 4)), means.std((0, 2, 3, 4))


@torch.no_grad()
def normalise_latents(vae, clips, log):
    """Changes the 1x1x1 convolutions around the latent so that normalised latents of `clips` have zero mean and unit
    variance per channel; what the decoder returns stays the same.

    With mu the old latent and mu' = a * mu + b the new one, a = latent_std / std(mu), b = latent_mean - a * mean(mu):
    conv1's rows are multiplied by a (its second half, the log-variance, moves by 2 log a), and conv2 undoes it.
    """
    mean, std = channel_statistics(vae, clips)
    log.result(raw_latent_std=[round(value, 4) for value in std.tolist()])
    scale = vae.latent_std.flatten().double() / std.clamp(min=MIN_CHANNEL_STD)
    offset = vae.latent_mean.flatten().double() - scale * mean
    z_dim = len(scale)
    weight, bias = vae.conv1.weight.double(), vae.conv1.bias.double()
    weight[:z_dim] *= scale.view(-1, 1, 1, 1, 1)
    bias[:z_dim] = bias[:z_dim] * scale + offset
    bias[z_dim:] += 2 * scale.log()
    vae.conv1.weight.copy_(weight)
    vae.conv1.bias.copy_(bias)
    weight = vae.conv2.weight.double() / scale.view(1, -1, 1, 1, 1)
    vae.conv2.bias.copy_(vae.conv2.bias.double() - weight.flatten(1) @ offset)
    vae.conv2.weight.copy_(weight)


def evaluate_vae(vae, count, sheet_path, log, device, workers):
    """Held-out digits through the VAE: PSNR, statistics of the latents, and what the judge makes of the copies."""
    clips, captions, labels = digits.make_clips(HELD_OUT_SEED, 0, count, "held_out", workers)
    mean, std = channel_statistics(vae, torch.from_numpy(clips).to(device))
    normalised_mean = (mean - vae.latent_mean.flatten()) / vae.latent_std.flatten()
    normalised_std = std / vae.latent_std.flatten()
    copies = reconstruct(vae, clips, device)
    square_error = np.mean((copies.astype(np.float32) - clips) ** 2)
    single = [i for i, label in enumerate(labels) if label["second_digit"] < 0]
    verdicts = {name: [judge.judge_clip(source[i]) for i in single] for name, source in
                (("original", clips), ("copy", copies))}
    log.result(
        held_out_psnr_db=round(float(10 * np.log10(255**2 / square_error)), 2),
        latent_mean_range=[round(normalised_mean.min().item(), 3), round(normalised_mean.max().item(), 3)],
        latent_std_range=[round(normalised_std.min().item(), 3), round(normalised_std.max().item(), 3)],
    )
    for name, seen in verdicts.items():
        right = [verdict.digit == labels[i]["digit"] for i, verdict in zip(single, seen, strict=True)]
        moves = [verdict.direction == labels[i]["direction"] for i, verdict in zip(single, seen, strict=True)]
        log.result(**{f"{name}_digit_accuracy": round(float(np.mean(right)), 4),
                      f"{name}_direction_accuracy": round(float(np.mean(moves)), 4)})
    shown = min(8, count)
    pairs = [clip for i in range(shown) for clip in (clips[i], copies[i])]
    write_sheet(sheet_path, pairs, [text for i in range(shown) for text in (captions[i], "its copy")])
