"""The diffusion transformer of OSP-Next (Wan2.1's network, arXiv 2503.20314, with Skiparse-2D, arXiv 2605.28691).

Legend: B batch, S sub-sequences (1 in full blocks, P^2 in sparse ones), N tokens of one sub-sequence, C width, H heads,
D head width, L text tokens, T/h/w grid. The residual stream is x_BSNC in the layout of the current block
(`layouts.py`); norms, modulation, rotation and time embedding are fp32, matrix products run in the weights' dtype.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from tools.torch_reference.layouts import build_layouts, relayout

NORM_EPS = 1e-6


def linear(x, layer):
    """`layer` applied in the dtype of its weights."""
    return layer(x.to(layer.weight.dtype))


def linear_fp32(x, layer):
    """`layer` applied in fp32, whatever its weights are stored in."""
    return F.linear(x.float(), layer.weight.float(), layer.bias.float())


def layer_norm(x):
    """Layer norm without affine weights, in and out fp32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=NORM_EPS)


def rotate(x_BSNHD, layout):
    """Rotary embedding of the interleaved pairs (2i, 2i+1), real arithmetic in fp32."""
    cos, sin = layout.cos_SNd[None, :, :, None], layout.sin_SNd[None, :, :, None]
    even, odd = x_BSNHD.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class RMSNorm(nn.Module):
    """RMS norm over the last dimension, fp32 out."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS) * self.weight.float()


class Attention(nn.Module):
    """Projections shared by self- and cross-attention; q and k are RMS-normalised over the full width.

    `attend` is the attention itself, with the arguments of F.scaled_dot_product_attention.
    """

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.attend = F.scaled_dot_product_attention
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim)
        self.norm_k = RMSNorm(dim)

    def _heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1))


class SelfAttention(Attention):
    """Attention inside every sub-sequence: x_BSNC -> [B, S, N, C]."""

    def forward(self, x_BSNC, layout):
        batch = x_BSNC.shape[0]
        v_BSNHD = self._heads(linear(x_BSNC, self.v))
        q_BSNHD = rotate(self._heads(self.norm_q(linear(x_BSNC, self.q))), layout).to(v_BSNHD.dtype)
        k_BSNHD = rotate(self._heads(self.norm_k(linear(x_BSNC, self.k))), layout).to(v_BSNHD.dtype)
        q, k, v = (rearrange(tensor, "b s n h d -> (b s) h n d") for tensor in (q_BSNHD, k_BSNHD, v_BSNHD))
        mask = layout.key_mask_SN
        if mask is not None:
            mask = mask.repeat(batch, 1)[:, None, None, :]
        out = self.attend(q, k, v, attn_mask=mask)
        return linear(rearrange(out, "(b s) h n d -> b s n (h d)", b=batch), self.o)


class CrossAttention(Attention):
    """Every token attends to the whole text, padding included: x_BSNC, text_BLC -> [B, S, N, C]."""

    def forward(self, x_BSNC, text_BLC):
        v_BLHD = self._heads(linear(text_BLC, self.v))
        k_BLHD = self._heads(self.norm_k(linear(text_BLC, self.k)).to(v_BLHD.dtype))
        q_BSNHD = self._heads(self.norm_q(linear(x_BSNC, self.q)).to(v_BLHD.dtype))
        q = rearrange(q_BSNHD, "b s n h d -> b h (s n) d")
        out = self.attend(q, k_BLHD.transpose(1, 2), v_BLHD.transpose(1, 2))
        return linear(rearrange(out, "b h (s n) d -> b s n (h d)", s=x_BSNC.shape[1]), self.o)


class Block(nn.Module):
    """Self-attention, cross-attention and FFN; the first and the last modulated by the time embedding."""

    def __init__(self, config):
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(1, 6, config.dim))
        self.self_attn = SelfAttention(config.dim, config.num_heads)
        self.norm3 = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.cross_attn = CrossAttention(config.dim, config.num_heads)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, config.dim)
        )

    def forward(self, x_BSNC, e0_B6C, text_BLC, layout):
        modulation = (self.modulation.float() + e0_B6C)[:, :, None, None]
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.unbind(1)
        update = self.self_attn(layer_norm(x_BSNC) * (1 + scale_a) + shift_a, layout)
        x_BSNC = (x_BSNC.float() + update.float() * gate_a).to(x_BSNC.dtype)
        normed = layer_norm(x_BSNC) * self.norm3.weight.float() + self.norm3.bias.float()
        x_BSNC = (x_BSNC.float() + self.cross_attn(normed, text_BLC).float()).to(x_BSNC.dtype)
        update = linear(layer_norm(x_BSNC) * (1 + scale_f) + shift_f, self.ffn[0])
        update = linear(self.ffn[1](update), self.ffn[2])
        return (x_BSNC.float() + update.float() * gate_f).to(x_BSNC.dtype)


class Head(nn.Module):
    """Modulated layer norm and the projection to patches: [B, N, C] -> [B, N, patch * channels]."""

    def __init__(self, dim, out_width):
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(1, 2, dim))
        self.head = nn.Linear(dim, out_width)

    def forward(self, x_BNC, e_BC):
        shift, scale = (self.modulation.float() + e_BC[:, None])[:, :, None].unbind(1)
        return linear(layer_norm(x_BNC) * (1 + scale) + shift, self.head)


def embed_time(model, t_B):
    """Sinusoid in float64 (t reaches 1000) -> e [B, C] for the head and e0 [B, 6, C] for the blocks, fp32."""
    half = model.config.freq_dim // 2
    exponents = torch.arange(half, dtype=torch.float64, device=t_B.device) / half
    angles = t_B.double()[:, None] * 10000.0**-exponents
    sinusoid = torch.cat((angles.cos(), angles.sin()), dim=1)
    e_BC = linear_fp32(F.silu(linear_fp32(sinusoid, model.time_embedding[0])), model.time_embedding[2])
    return e_BC, linear_fp32(F.silu(e_BC), model.time_projection[1]).unflatten(1, (6, -1))


class OSPNextDiT(nn.Module):
    """Velocity of flow matching for a video latent.

    `config` is an `ospnext_ms.models.config.DiTConfig`. `residual_dtype` is the dtype of the residual stream: None
    means that of the weights; torch.float32 with bf16 weights is what the original does. Parameters carry the names of
    the Wan2.1 checkpoints. Set `gradient_checkpointing` to recompute every block in the backward pass. Compile with
    `torch.compile(model, dynamic=False)`, one graph a shape: symbolic grid sizes take minutes to reason about.
    """

    def __init__(self, config, residual_dtype=None):
        super().__init__()
        if config.quant is not None or config.quant_attention is not None:
            raise ValueError(f"quant is {config.quant!r}, quant_attention {config.quant_attention!r}; "
                             "the reference has no quantised layers, valid: None")
        self.config = config
        self.residual_dtype = residual_dtype
        self.gradient_checkpointing = False
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.in_channels, dim, config.patch_size, stride=config.patch_size)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        _, patch_height, patch_width = config.patch_size
        self.head = Head(dim, patch_height * patch_width * config.out_channels)
        self._layouts = {}
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Initialisation of Wan2.1: the zero head makes the untrained network return zero velocity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Block | Head):
                nn.init.normal_(module.modulation, std=self.config.dim**-0.5)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        nn.init.zeros_(self.patch_embedding.bias)
        for layer in (self.text_embedding[0], self.text_embedding[2], self.time_embedding[0], self.time_embedding[2]):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)

    def forward(self, x_BCThw, t_B, text_BLC, return_hidden=False):
        """x [B, C, T, H, W], t [B] in [0, 1000], text [B, L <= text_len, text_dim] -> velocity [B, C, T, H, W] fp32.

        With `return_hidden` also a list of what every block returns: full blocks and the last sparse one [B, N, C] in
        natural order, other sparse blocks [S*B, N_padded/S, C] with the sub-sequence as the slower index.
        Raises ValueError where x does not divide into patches or the text is too long.
        """
        x_BSNC, grid = self._embed_patches(x_BCThw)
        layouts = self._layouts_of(grid, x_BCThw.device)
        e_BC, e0_B6C = embed_time(self, t_B)
        text_BLC = self._embed_text(text_BLC)
        patterns = self.config.block_patterns
        hidden = []
        layout = "full"
        for block, pattern, following in zip(self.blocks, patterns, (*patterns[1:], "full"), strict=True):
            x_BSNC = relayout(x_BSNC, layout, pattern, grid, self.config.sparse_ratio)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x_BSNC = checkpoint(block, x_BSNC, e0_B6C, text_BLC, layouts[pattern], use_reentrant=False)
            else:
                x_BSNC = block(x_BSNC, e0_B6C, text_BLC, layouts[pattern])
            layout = "full" if following == "full" else pattern
            x_BSNC = relayout(x_BSNC, pattern, layout, grid, self.config.sparse_ratio)
            if return_hidden:
                hidden.append(rearrange(x_BSNC, "b s n c -> (s b) n c"))
        out = self._unpatchify(self.head(x_BSNC[:, 0], e_BC), grid)
        return (out, hidden) if return_hidden else out

    def forward_with_added(self, x_BCThw, t_B, text_BLC):
        """(`forward`, what the blocks add to the residual stream [B, N, C] in natural order)."""
        velocity, hidden = self(x_BCThw, t_B, text_BLC, return_hidden=True)
        return velocity, hidden[-1] - self._embed_patches(x_BCThw)[0][:, 0]

    def project(self, x_BCThw, t_B, added_BNC):
        """Velocity where `added_BNC` stands for what the blocks add."""
        x_BSNC, grid = self._embed_patches(x_BCThw)
        return self._unpatchify(self.head(x_BSNC[:, 0] + added_BNC, embed_time(self, t_B)[0]), grid)

    def _embed_patches(self, x_BCThw):
        _, patch_height, patch_width = self.config.patch_size
        frames, height, width = x_BCThw.shape[2:]
        if height % patch_height or width % patch_width:
            raise ValueError(f"latent of {height}x{width} does not divide into patches of {patch_height}x{patch_width}")
        patches = rearrange(x_BCThw, "b c t (h p) (w q) -> b 1 (t h w) (c p q)", p=patch_height, q=patch_width)
        weight = self.patch_embedding.weight
        x_BSNC = F.linear(patches.to(weight.dtype), weight.flatten(1), self.patch_embedding.bias)
        return x_BSNC.to(self.residual_dtype or weight.dtype), (frames, height // patch_height, width // patch_width)

    def _embed_text(self, text_BLC):
        length = text_BLC.shape[1]
        if length > self.config.text_len:
            raise ValueError(f"text of {length} tokens is longer than text_len {self.config.text_len}")
        text_BLC = F.pad(text_BLC, (0, 0, 0, self.config.text_len - length))
        return linear(self.text_embedding[1](linear(text_BLC, self.text_embedding[0])), self.text_embedding[2])

    def _unpatchify(self, patches, grid):
        _, patch_height, patch_width = self.config.patch_size
        frames, height, width = grid
        return rearrange(patches.float(), "b (t h w) (p q c) -> b c t (h p) (w q)", t=frames, h=height, w=width,
                         p=patch_height, q=patch_width)

    @torch.compiler.disable
    def _layouts_of(self, grid, device):
        """Tables are built once per grid and device; outside the compiled graph, so that they are inputs to it."""
        key = (*grid, str(device))
        if key not in self._layouts:
            with torch.inference_mode(False):
                self._layouts[key] = build_layouts(grid, self.config.sparse_ratio, self.config.head_dim, device)
        return self._layouts[key]
