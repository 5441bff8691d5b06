"""The UMT5 encoder: a T5 v1.1 encoder (arXiv 1910.10683) whose layers each have their own relative position bias.

Legend: B batch, L tokens, C width, H heads, D head width. Norms and softmax are fp32, matrix products run in the
weights' dtype, attention is not scaled by 1/sqrt(D).
"""

import math

import torch
from einops import rearrange
from torch import nn

NORM_EPS = 1e-6
MAX_DISTANCE = 128


def relative_position_buckets(length, num_buckets, device=None):
    """Bucket of (key - query) for every pair [L queries, L keys], int64: T5's bidirectional buckets.

    The fp32 operations stand in T5's order: the truncation decides at exact powers, so another order moves tokens.
    """
    positions = torch.arange(length, device=device)
    relative = positions[None, :] - positions[:, None]
    half = num_buckets // 2
    exact = half // 2
    distance = relative.abs()
    fraction = torch.log(distance.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact)
    logarithmic = exact + (fraction * (half - exact)).long()
    bucket = torch.where(distance < exact, distance, logarithmic.clamp(max=half - 1))
    return bucket + half * (relative > 0)


class RMSNorm(nn.Module):
    """RMS norm over the last dimension, computed in fp32, returned in the dtype of the input."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + NORM_EPS)
        return (normed * self.weight.float()).to(x.dtype)


class RelativePositionBias(nn.Module):
    """One learned number per bucket and head."""

    def __init__(self, num_buckets, num_heads):
        super().__init__()
        self.embedding = nn.Embedding(num_buckets, num_heads)

    def forward(self, buckets_LL):
        return self.embedding(buckets_LL).permute(2, 0, 1).float()


class Attention(nn.Module):
    """Self-attention with an additive bias [H, L, L] and key mask [B, L] (True = real) or None."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.o = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BLC, bias_HLL, mask_BL):
        q, k, v = (rearrange(layer(x_BLC), "b l (h d) -> b h l d", h=self.num_heads)
                   for layer in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-1, -2)).float() + bias_HLL
        if mask_BL is not None:
            scores = scores.masked_fill(~mask_BL[:, None, None], torch.finfo(torch.float32).min)
        out = scores.softmax(dim=-1).to(v.dtype) @ v
        return self.o(rearrange(out, "b h l d -> b l (h d)"))


class GatedFFN(nn.Module):
    """fc2(fc1(x) * GELU(gate(x)))."""

    def __init__(self, dim, ffn_dim):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(dim, ffn_dim, bias=False), nn.GELU(approximate="tanh"))
        self.fc1 = nn.Linear(dim, ffn_dim, bias=False)
        self.fc2 = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x):
        return self.fc2(self.fc1(x) * self.gate(x))


class Block(nn.Module):
    """Pre-norm attention and FFN."""

    def __init__(self, config):
        super().__init__()
        self.norm1 = RMSNorm(config.dim)
        self.attn = Attention(config.dim, config.num_heads)
        self.norm2 = RMSNorm(config.dim)
        self.ffn = GatedFFN(config.dim, config.ffn_dim)
        self.pos_embedding = RelativePositionBias(config.num_buckets, config.num_heads)

    def forward(self, x_BLC, buckets_LL, mask_BL):
        x_BLC = x_BLC + self.attn(self.norm1(x_BLC), self.pos_embedding(buckets_LL), mask_BL)
        return x_BLC + self.ffn(self.norm2(x_BLC))


class UMT5Encoder(nn.Module):
    """Text encoder; `config` is an `ospnext_ms.models.config.UMT5Config`, parameters carry the checkpoint's names."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim)

    def forward(self, ids_BL, mask_BL=None):
        """Token ids [B, L] int64 and mask [B, L] (non-zero = real token; None = all real) -> [B, L, dim].

        Rows of padding are computed like any other; whoever feeds a DiT sets them to zero.
        """
        mask_BL = None if mask_BL is None else mask_BL.bool()
        buckets_LL = relative_position_buckets(ids_BL.shape[1], self.config.num_buckets, ids_BL.device)
        x_BLC = self.token_embedding(ids_BL)
        for block in self.blocks:
            x_BLC = block(x_BLC, buckets_LL, mask_BL)
        return self.norm(x_BLC)
