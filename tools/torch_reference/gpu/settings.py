"""What the benchmark measures: models, token grids, inputs and the figures of the paper (arXiv 2605.28691)."""

from dataclasses import dataclass, field

import torch

from ospnext_ms.models.config import DiTConfig
from tools.torch_reference.gpu.packed import PackedDiT

_WAN = {"freq_dim": 256, "text_dim": 4096, "text_len": 512}
MODELS = {
    "14b": DiTConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, num_full_blocks=8, **_WAN),
    "1.3b": DiTConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, num_full_blocks=8, **_WAN),
    "tiny": DiTConfig(dim=64, ffn_dim=128, num_heads=4, num_layers=8, num_full_blocks=4, freq_dim=32, text_dim=32,
                      text_len=16),
}


@dataclass(frozen=True)
class Setting:
    """A video size: token grid (T, h, w), default model, and what others measured there.

    `paper` {number of GPUs: (bf16 speed-up of sparse over full)} on H200; `release` {mode: seconds of a forward} of
    the authors' code, compiled, with cuDNN attention on one H200.
    """

    grid: tuple
    model: str
    paper: dict = field(default_factory=dict)
    release: dict = field(default_factory=dict)


SETTINGS = {
    "720p": Setting((21, 45, 80), "14b", {1: 1.53, 8: 1.42}, {"full": 11.17, "sparse": 7.66}),
    "768p": Setting((21, 48, 84), "14b", {1: 1.64, 8: 1.52}, {"full": 13.88, "sparse": 7.74}),
    "480p": Setting((21, 30, 52), "14b"),
    "tiny": Setting((2, 6, 6), "tiny"),
}


def random_inputs(config, grid, device, batch=1, seed=0):
    """(latent, timestep, text) of a grid, normal; latent and text fp32."""
    generator = torch.Generator().manual_seed(seed)
    frames, height, width = grid
    _, p, q = config.patch_size
    latent = torch.randn(batch, config.in_channels, frames, height * p, width * q, generator=generator)
    text = torch.randn(batch, config.text_len, config.text_dim, generator=generator)
    return latent.to(device), torch.full((batch,), 500.0, device=device), text.to(device)


def random_model(config, device, dtype, seed=0, **arguments):
    """PackedDiT created on `device` with random weights that keep activations near one; nothing in it is zero."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = PackedDiT(config, dtype=dtype, **arguments)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("modulation"):
                parameter.normal_(std=config.dim**-0.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
            elif parameter.dim() == 1:
                parameter.normal_(std=0.02)
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model.requires_grad_(False)
