"""WanVAE, the causal 3D autoencoder of Wan2.1 (arXiv 2503.20314): 8x8 in space, 4x in time.

Legend: B batch, C channels, T frames, H/W height and width. Every module that looks into the past takes `past`, a dict
{module: its last input frames} which it replaces (never writes into), so that a video can be streamed in chunks and
gradients still flow. `past` = None means: the tensor is the whole sequence, nothing follows and nothing is kept.

The definition streams 1, 4, 4, ... frames. Every module here treats the first frame of a sequence apart by itself, so
that longer chunks, up to the whole video, give the same numbers.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

WIDTH_MULTIPLIERS = (1, 2, 4, 4)
DOWNSAMPLES_TIME = (False, True, True)
FRAMES_PER_LATENT = 4
LATENT_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
               0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
LATENT_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
              3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


def per_frame(function, x_BCTHW):
    """`function` of images applied to every frame."""
    out = function(rearrange(x_BCTHW, "b c t h w -> (b t) c h w"))
    return rearrange(out, "(b t) c h w -> b c t h w", b=x_BCTHW.shape[0])


class CausalConv3d(nn.Conv3d):
    """Convolution that pads with zeros in space and with the past (zeros before the first frame) in time."""

    def __init__(self, in_channels, out_channels, kernel_size):
        kernel_size = (kernel_size,) * 3 if isinstance(kernel_size, int) else kernel_size
        super().__init__(in_channels, out_channels, kernel_size, padding=(0, kernel_size[1] // 2, kernel_size[2] // 2))

    def forward(self, x_BCTHW, past=None):
        needed = self.kernel_size[0] - 1
        if needed == 0:
            return super().forward(x_BCTHW)
        before = None if past is None else past.get(self)
        if before is None:
            before = torch.zeros_like(x_BCTHW[:, :, :1]).expand(-1, -1, needed, -1, -1)
        x_BCTHW = torch.cat((before, x_BCTHW), dim=2)
        if past is not None:
            past[self] = x_BCTHW[:, :, -needed:]
        return super().forward(x_BCTHW)


class ChannelNorm(nn.Module):
    """x / ||x||_2 over channels, times sqrt(C), times gamma; computed in fp32."""

    def __init__(self, channels, trailing_dims):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * trailing_dims))

    def forward(self, x):
        normed = F.normalize(x.float(), dim=1) * x.shape[1] ** 0.5 * self.gamma.float()
        return normed.to(x.dtype)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, plus the input (through a 1x1x1 convolution where the width changes)."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.residual = nn.Sequential(
            ChannelNorm(in_channels, 3), nn.SiLU(), CausalConv3d(in_channels, out_channels, 3),
            ChannelNorm(out_channels, 3), nn.SiLU(), nn.Dropout(0.0), CausalConv3d(out_channels, out_channels, 3),
        )
        self.shortcut = nn.Identity() if in_channels == out_channels else CausalConv3d(in_channels, out_channels, 1)

    def forward(self, x_BCTHW, past=None):
        return self.shortcut(x_BCTHW) + run(self.residual, x_BCTHW, past)


class SpatialAttention(nn.Module):
    """Single-head self-attention inside every frame, added to its input."""

    def __init__(self, channels):
        super().__init__()
        self.norm = ChannelNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCTHW, past=None):
        return x_BCTHW + per_frame(self._attend, x_BCTHW)

    def _attend(self, images):
        height = images.shape[2]
        qkv = rearrange(self.to_qkv(self.norm(images)), "b (three c) h w -> three b 1 (h w) c", three=3)
        out = F.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(rearrange(out, "b 1 (h w) c -> b c h w", h=height))


class Downsample(nn.Module):
    """Halves height and width per frame and, with `in_time`, the frame rate; the very first frame stays one frame."""

    def __init__(self, channels, in_time):
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if in_time else None

    def forward(self, x_BCTHW, past=None):
        x_BCTHW = per_frame(self.resample, x_BCTHW)
        if self.time_conv is None:
            return x_BCTHW
        last = None if past is None else past.get(self)
        if past is not None:
            past[self] = x_BCTHW[:, :, -1:]
        if last is not None:
            return self.time_conv(torch.cat((last, x_BCTHW), dim=2))
        if x_BCTHW.shape[2] == 1:
            return x_BCTHW
        return torch.cat((x_BCTHW[:, :, :1], self.time_conv(x_BCTHW)), dim=2)


class Upsample(nn.Module):
    """Doubles height and width per frame, halves the channels; with `in_time` every frame but the first becomes two."""

    def __init__(self, channels, in_time):
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest-exact"), nn.Conv2d(channels, channels // 2, 3, padding=1)
        )
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if in_time else None

    def forward(self, x_BCTHW, past=None):
        if self.time_conv is not None:
            x_BCTHW = self._double_frames(x_BCTHW, past)
        return per_frame(self.resample, x_BCTHW)

    def _double_frames(self, x_BCTHW, past):
        """The first frame passes unchanged and unseen: for the second one the past is zeros."""
        is_first = past is None or self not in past
        if past is not None:
            past[self] = True
        first, rest = (x_BCTHW[:, :, :1], x_BCTHW[:, :, 1:]) if is_first else (x_BCTHW[:, :, :0], x_BCTHW)
        if rest.shape[2] == 0:
            return first
        doubled = rearrange(self.time_conv(rest, past), "b (two c) t h w -> b c (t two) h w", two=2)
        return torch.cat((first, doubled), dim=2)


def run(layers, x_BCTHW, past):
    """Applies layers in order and hands `past` to those that look into it."""
    for layer in layers:
        looks_back = isinstance(layer, CausalConv3d | ResidualBlock | SpatialAttention | Downsample | Upsample)
        x_BCTHW = layer(x_BCTHW, past) if looks_back else layer(x_BCTHW)
    return x_BCTHW


def _middle(width):
    return nn.ModuleList((ResidualBlock(width, width), SpatialAttention(width), ResidualBlock(width, width)))


def _head(width, out_channels):
    return nn.ModuleList((ChannelNorm(width, 3), nn.SiLU(), CausalConv3d(width, out_channels, 3)))


class Encoder(nn.Module):
    """Video [B, 3, F, H, W] -> [B, 2 z, (F - 1)/4 + 1, H/8, W/8]."""

    def __init__(self, dim, out_channels):
        super().__init__()
        widths = [dim * multiplier for multiplier in WIDTH_MULTIPLIERS]
        self.conv1 = CausalConv3d(3, widths[0], 3)
        layers = []
        for level, (before, width) in enumerate(zip((dim, *widths), widths, strict=False)):
            layers += [ResidualBlock(before, width), ResidualBlock(width, width)]
            if level < len(DOWNSAMPLES_TIME):
                layers.append(Downsample(width, DOWNSAMPLES_TIME[level]))
        self.downsamples = nn.ModuleList(layers)
        self.middle = _middle(widths[-1])
        self.head = _head(widths[-1], out_channels)

    def forward(self, x_BCTHW, past=None):
        return run((self.conv1, *self.downsamples, *self.middle, *self.head), x_BCTHW, past)


class Decoder(nn.Module):
    """Latent [B, z, T, H/8, W/8] -> video [B, 3, 4 (T - 1) + 1, H, W]."""

    def __init__(self, dim, in_channels):
        super().__init__()
        widths = [dim * multiplier for multiplier in reversed(WIDTH_MULTIPLIERS)]
        upsamples_time = tuple(reversed(DOWNSAMPLES_TIME))
        self.conv1 = CausalConv3d(in_channels, widths[0], 3)
        self.middle = _middle(widths[0])
        layers = []
        before = widths[0]
        for level, width in enumerate(widths):
            layers += [ResidualBlock(before, width), ResidualBlock(width, width), ResidualBlock(width, width)]
            before = width // 2
            if level < len(upsamples_time):
                layers.append(Upsample(width, upsamples_time[level]))
        self.upsamples = nn.ModuleList(layers)
        self.head = _head(widths[-1], 3)

    def forward(self, x_BCTHW, past=None):
        return run((self.conv1, *self.middle, *self.upsamples, *self.head), x_BCTHW, past)


class WanVAE(nn.Module):
    """The autoencoder; `config` is an `ospnext_ms.models.config.VAEConfig`, parameters carry Wan2.1's names.

    `latents_per_chunk` is how many latent frames (of 4 video frames, the first of 1) are worked on at a time: 1 is the
    definition and the least memory, None the whole video at once, faster and best for training. Numbers do not depend
    on it beyond rounding.
    """

    def __init__(self, config, latents_per_chunk=1):
        super().__init__()
        if config.z_dim != len(LATENT_MEAN):
            raise ValueError(f"vae.z_dim is {config.z_dim}; latent statistics are known for {len(LATENT_MEAN)} only")
        if latents_per_chunk is not None and latents_per_chunk < 1:
            raise ValueError(f"latents_per_chunk is {latents_per_chunk}; valid: None or at least 1")
        self.config = config
        self.latents_per_chunk = latents_per_chunk
        self.encoder = Encoder(config.dim, 2 * config.z_dim)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config.dim, config.z_dim)
        self.register_buffer("latent_mean", torch.tensor(LATENT_MEAN).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("latent_std", torch.tensor(LATENT_STD).view(-1, 1, 1, 1), persistent=False)

    def encode(self, video):
        """Video [B, 3, F, H, W] in [-1, 1] -> normalised latent mean [B, z, (F - 1)/4 + 1, H/8, W/8].

        Raises ValueError unless F = 4k + 1 and H and W are multiples of 8.
        """
        return (self.encode_moments(video)[0] - self.latent_mean) / self.latent_std

    def decode(self, latent):
        """Normalised latent [B, z, T, H/8, W/8] -> video [B, 3, 4 (T - 1) + 1, H, W] clamped to [-1, 1]."""
        return self.decode_raw(latent * self.latent_std + self.latent_mean).clamp(-1, 1)

    def encode_moments(self, video):
        """Un-normalised (mu, log_var) of the latent; shapes and errors as in `encode`."""
        frames, height, width = video.shape[2:]
        if frames % FRAMES_PER_LATENT != 1 or height % 8 or width % 8:
            raise ValueError(f"video has {frames} frames of {height}x{width}; "
                             "valid: 4k + 1 frames, height and width multiples of 8")
        moments = self._stream(self.encoder, video, FRAMES_PER_LATENT)
        return self.conv1(moments).chunk(2, dim=1)

    def decode_raw(self, z):
        """Un-normalised latent -> video, not clamped."""
        return self._stream(self.decoder, self.conv2(z), 1)

    def _stream(self, network, x_BCTHW, frames_per_latent):
        if self.latents_per_chunk is None:
            return network(x_BCTHW)
        size = self.latents_per_chunk * frames_per_latent
        frames = x_BCTHW.shape[2]
        sizes = [1] + [min(size, frames - start) for start in range(1, frames, size)]
        past = {}
        return torch.cat([network(chunk, past) for chunk in x_BCTHW.split(sizes, dim=2)], dim=2)
