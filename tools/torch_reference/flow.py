"""Flow matching: x_sigma = sigma * noise + (1 - sigma) * x0, velocity = noise - x0 (arXiv 2605.28691)."""

import torch
import torch.nn.functional as F


def inference_sigmas(num_steps, shift):
    """Shifted sigmas from 1 to 0, float64 [num_steps + 1]: s * sigma / (1 + (s - 1) * sigma) of an even grid."""
    if num_steps < 1 or shift <= 0:
        raise ValueError(f"num_steps is {num_steps}, shift is {shift}; num_steps must be at least 1, shift positive")
    sigma = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    return shift * sigma / (1 + (shift - 1) * sigma)


def velocity_loss(model, x0, noise, sigma, *condition):
    """Mean squared error of the velocity on the straight paths from x0 to noise.

    x0 and noise [B, C, T, H, W], sigma [B]; `condition` is what `model` takes beside the sample and t = 1000 * sigma.
    """
    sample = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1, 1))
    return F.mse_loss(model(sample, 1000 * sigma, *condition).float(), noise - x0)


def guided_velocity(dit, sample, t, text, negative_text, guidance):
    """v_uncond + guidance * (v_cond - v_uncond), both branches in one call.

    sample [B, C, T, H, W], t a number in [0, 1000], text and negative_text [B, L, text_dim], L may differ.
    """
    length = max(text.shape[1], negative_text.shape[1])
    both = torch.cat([F.pad(branch, (0, 0, 0, length - branch.shape[1])) for branch in (negative_text, text)])
    t_B = torch.full((2 * sample.shape[0],), t, dtype=torch.float32, device=sample.device)
    uncond, cond = dit(torch.cat((sample, sample)), t_B, both).chunk(2)
    return uncond + guidance * (cond - uncond)


@torch.no_grad()
def sample(dit, noise, text, negative_text, num_steps, shift, guidance):
    """Euler steps x += v * (sigma_next - sigma) from noise [B, C, T, H, W] to a latent, in fp32.

    text and negative_text [B, L, text_dim]; t = 1000 * sigma.
    """
    latent = noise.float()
    sigmas = inference_sigmas(num_steps, shift).tolist()
    for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
        velocity = guided_velocity(dit, latent, 1000 * sigma, text, negative_text, guidance)
        latent = latent + velocity.float() * (sigma_next - sigma)
    return latent
