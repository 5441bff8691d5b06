"""The tiny family's networks (PyTorch) in use: prompts to embeddings, clips to latents and back, noise to clips."""

import numpy as np
import torch
from torch import nn

from ospnext_ms.models.config import DiTConfig
from tools.tiny_family.tokenizer import tokenize
from tools.torch_reference import flow
from tools.torch_reference.dit import OSPNextDiT
from tools.torch_reference.loading import load
from tools.torch_reference.umt5 import UMT5Encoder
from tools.torch_reference.vae import WanVAE

NEGATIVE_PROMPT = ""


def load_vae(config, path, device):
    """The autoencoder with the weights at `path`, ready for inference on whole clips."""
    return load(WanVAE(config, latents_per_chunk=None), path).to(device).eval().requires_grad_(False)


def load_text_encoder(config, path, device):
    """The text encoder with the weights at `path`, frozen."""
    return load(UMT5Encoder(config), path).to(device).eval().requires_grad_(False)


def load_dit(config, path, device):
    """A diffusion transformer with the weights at `path`, frozen."""
    return load(OSPNextDiT(config), path).to(device).eval().requires_grad_(False)


def embed(text_encoder, ids, mask):
    """Token ids and mask [B, L] -> embeddings [B, L, text_dim], zero where there is no token."""
    return text_encoder(ids, mask) * mask[..., None]


def embed_prompts(text_encoder, tokenizer, prompts, text_len):
    """Prompts -> embeddings [B, L, text_dim] on the encoder's device."""
    device = text_encoder.token_embedding.weight.device
    ids, mask = (torch.from_numpy(array).to(device) for array in tokenize(tokenizer, prompts, text_len))
    return embed(text_encoder, ids, mask)


def to_video(clips, device):
    """uint8 [B, F, H, W, 3] -> fp32 [B, 3, F, H, W] in [-1, 1]; a tensor stays where it is."""
    clips = torch.as_tensor(clips).to(device)
    return clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_clips(video):
    """[B, 3, F, H, W] in [-1, 1] -> uint8 array [B, F, H, W, 3]."""
    levels = ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 4, 1).cpu().numpy()


@torch.no_grad()
def decode_clips(vae, latents, batch_size=16):
    """Normalised latents [N, 16, T, h, w] -> uint8 [N, F, H, W, 3]."""
    return np.concatenate([to_clips(vae.decode(chunk)) for chunk in latents.split(batch_size)])


@torch.no_grad()
def reconstruct(vae, clips, device, batch_size=16):
    """Clips through encoder and decoder, uint8 [N, F, H, W, 3]."""
    chunks = torch.as_tensor(clips).split(batch_size)
    return np.concatenate([to_clips(vae.decode(vae.encode(to_video(chunk, device)))) for chunk in chunks])


@torch.no_grad()
def sample_latents(dit, embeddings, negative, noise, sampling, batch_size=200):
    """Embeddings [N, L, D], negative [1, L, D], noise [N, 16, T, h, w] -> latents, in batches."""
    latents = []
    for text, start in zip(embeddings.split(batch_size), noise.split(batch_size), strict=True):
        empty = negative.expand(len(text), -1, -1)
        latents.append(
            flow.sample(dit, start, text, empty, sampling.num_steps, sampling.shift, sampling.guidance)
        )
    return torch.cat(latents)


class TextToVelocity(nn.Module):
    """Text encoder and DiT as one module, to be trained together."""

    def __init__(self, text_encoder, dit):
        super().__init__()
        self.text_encoder = text_encoder
        self.dit = dit

    def forward(self, x, t, ids, mask):
        """Noisy latents, t in [0, 1000], token ids and mask -> velocity."""
        return self.dit(x, t, embed(self.text_encoder, ids, mask))


def parameter_count(config):
    """Parameters of the network of a configuration."""
    kind = OSPNextDiT if isinstance(config, DiTConfig) else WanVAE if hasattr(config, "z_dim") else UMT5Encoder
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in kind(config).parameters())
