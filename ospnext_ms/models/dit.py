"""The OSP-Next diffusion transformer (arXiv 2605.28691): Wan2.1's network with full and sparse blocks, in packed order.

B batch, N = T*H*W tokens, C width, L text tokens. The latent has in_channels channels and (T, 2H, 2W) positions for
patch size (1, 2, 2). The token sequence is permuted into token order when it enters, gathered once at every switch
between token and group blocks, and permuted back at the end; full blocks run in whatever order it is in.
"""

from functools import partial

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import Normal, initializer

from ospnext_ms.kernels.activations import GELU
from ospnext_ms.kernels.attention import Attention, default_attention
from ospnext_ms.kernels.fan_out import fan_out
from ospnext_ms.kernels.slices import chunk
from ospnext_ms.kernels.timesteps import Sinusoid
from ospnext_ms.models.config import DiTConfig
from ospnext_ms.models.dit_attention import CrossAttention, SelfAttention
from ospnext_ms.models.layers import (
    GatedUpdate,
    LayerNorm,
    Linear,
    PatchEmbedding,
    SiLU,
    timestep_frequencies,
)
from ospnext_ms.models.sequence import PackedSequence

__all__ = ["DiTConfig", "DiTBlock", "OSPNextDiT"]


class DiTBlock(nn.Cell):
    """One transformer block.

        x += gate_a * SelfAttention(norm1(x) * (1 + scale_a) + shift_a)
        x += CrossAttention(norm3(x), text)
        x += gate_f * FFN(norm2(x) * (1 + scale_f) + shift_f)

    with (shift_a, scale_a, gate_a, shift_f, scale_f, gate_f) = modulation + e0. Norms, modulation and the updates of x
    are fp32; x is rounded once per update to its own dtype.

    Inputs: x [B, N, C], e0 [B, 6, C] fp32, text [B, L, C], cos and sin [1, N, 1, D], grid, pattern. Output: as x.
    """

    def __init__(self, config, linear, sequence, attention, cross_attention, sparse, dtype, attention_inputs=None):
        super().__init__()
        dim = config.dim
        self.norm1 = LayerNorm(dim, affine=False)
        self.self_attn = SelfAttention(dim, config.num_heads, linear, sequence, attention, sparse, dtype,
                                       attention_inputs)
        self.norm3 = LayerNorm(dim, affine=True)
        self.cross_attn = CrossAttention(dim, config.num_heads, linear, cross_attention, dtype)
        self.norm2 = LayerNorm(dim, affine=False)
        self.ffn = nn.SequentialCell(linear(dim, config.ffn_dim), GELU(), linear(config.ffn_dim, dim))
        self.update = GatedUpdate()
        self.both = fan_out(2)
        self.modulation = Parameter(initializer(Normal(dim**-0.5), (1, 6, dim), ms.float32), name="modulation")

    def construct(self, x_BNC, e0_B6C, text_BLC, cos_1N1D, sin_1N1D, grid, pattern):
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = chunk(self.modulation + e0_B6C, 6, 1)
        x_BNC, seen_BNC = self.both(x_BNC)
        y = self.self_attn(self.norm1(seen_BNC) * (1 + scale_a) + shift_a, cos_1N1D, sin_1N1D, grid, pattern)
        x_BNC, seen_BNC = self.both(self.update(x_BNC, y, gate_a))
        y = self.cross_attn(self.norm3(seen_BNC), text_BLC)
        x_BNC = (x_BNC.astype(ms.float32) + y.astype(ms.float32)).astype(x_BNC.dtype)
        x_BNC, seen_BNC = self.both(x_BNC)
        y = self.ffn(self.norm2(seen_BNC) * (1 + scale_f) + shift_f)
        return self.update(x_BNC, y, gate_f)


class Head(nn.Cell):
    """norm(x) * (1 + scale) + shift, then a projection to the patch, in fp32.

    Inputs: x [B, N, C], e [B, C] fp32. Output [B, N, out_channels * prod(patch_size)] fp32, channels last.
    """

    def __init__(self, dim, out_dim):
        super().__init__()
        self.norm = LayerNorm(dim, affine=False)
        self.head = Linear(dim, out_dim)
        self.modulation = Parameter(initializer(Normal(dim**-0.5), (1, 2, dim), ms.float32), name="modulation")

    def construct(self, x_BNC, e_BC):
        shift, scale = chunk(self.modulation + e_BC.expand_dims(1), 2, 1)
        return self.head(self.norm(x_BNC) * (1 + scale) + shift)


class OSPNextDiT(nn.Cell):
    """Velocity of a video latent.

    Args:
        config: DiTConfig.
        dtype: compute dtype of linears and attention (fp32; bf16 on Ascend). Norms, modulation, RoPE, the timestep
            path and the head are fp32 always.
        param_dtype: storage dtype of the linears' weights, default `dtype`.
        residual_dtype: dtype of the residual stream, default fp32, as in the original.
        linear: factory (in_channels, out_channels) -> Cell of the blocks' linear layers, default Linear.
        sequence: what owns the order of the tokens, default PackedSequence (the whole video on this device).
        attention: Cell with the contract of kernels.attention.Attention, default the best one of this device.
        cross_attention: the same for the text, default `attention`.
        attention_inputs: what is done to q, k and v of the video before they are ordered, see SelfAttention.
            What is given for linear, attention, cross_attention and attention_inputs is that of the
            `quantised_blocks` of the configuration, all of them unless it says otherwise; the others have the defaults.

    Inputs: x [B, in_channels, T, H', W']; t [B] in [0, 1000]; text [B, L, text_dim] with L <= text_len, zero-padded
    here to text_len, the padding being attended to. Output: velocity [B, out_channels, T, H', W'] fp32.

    Raises:
        ValueError: an input whose shape does not fit the configuration; a configuration with `quant` or
            `quant_attention`, but no `linear` or `cross_attention` that does it (build.build_dit makes them).
    """

    def __init__(self, config, dtype=ms.float32, *, param_dtype=None, residual_dtype=None, linear=None, attention=None,
                 cross_attention=None, attention_inputs=None, sequence=None):
        super().__init__()
        _check_quantization(config, linear, cross_attention)
        param_dtype = param_dtype or dtype
        plain = partial(Linear, dtype=dtype, param_dtype=param_dtype)
        linear = linear or plain
        plain_attention = Attention(default_attention(dtype))
        attention = attention or plain_attention
        cross_attention = cross_attention or attention
        sequence = sequence or PackedSequence(config.sparse_ratio)
        dim = config.dim
        self.config = config
        self.residual_dtype = residual_dtype or ms.float32
        self.sequence = sequence
        self.patch_embedding = PatchEmbedding(config.in_channels, dim, config.patch_size, dtype, param_dtype)
        self.text_embedding = nn.SequentialCell(plain(config.text_dim, dim), GELU(), plain(dim, dim))
        self.sinusoid = Sinusoid(timestep_frequencies(config.freq_dim))
        self.time_embedding = nn.SequentialCell(Linear(config.freq_dim, dim), SiLU(), Linear(dim, dim))
        self.time_projection = nn.SequentialCell(SiLU(), Linear(dim, 6 * dim))
        patterns = config.block_patterns
        self.orders = _orders(patterns)
        self.distinct_orders = tuple(dict.fromkeys(self.orders))
        self.place_of_order = tuple(map(self.distinct_orders.index, self.orders))
        given = linear, sequence, attention, cross_attention
        plainly = plain, sequence, plain_attention, plain_attention
        inside = config.quantised_blocks
        self.blocks = nn.CellList(
            [DiTBlock(config, *(given if i in inside else plainly), pattern != "full", dtype,
                      attention_inputs if i in inside else None) for i, pattern in enumerate(patterns)]
        )
        self.head = Head(dim, config.out_channels * int(np.prod(config.patch_size)))

    def construct(self, x, t, text):
        grid = self.grid_of(x, t, text)
        e_BC, e0_B6C = self.embed_time(t)
        x_BNC = self.run_blocks(self.embed_patches(x, grid), e0_B6C, self.embed_text(text), grid)
        return self.project(x_BNC, e_BC, grid)

    def grid_of(self, x, t, text):
        """Token grid (T, H, W) of inputs that fit the configuration; ValueError where they do not."""
        _check_inputs(self.config, x.shape, t.shape, text.shape)
        return _token_grid(x.shape, self.config.patch_size)

    def embed_patches(self, x, grid):
        """Latent -> hidden states [B, N, C] in token order."""
        patches_BNK = self.sequence.enter(patchify(x, self.config.patch_size), grid)
        return self.patch_embedding(patches_BNK).astype(self.residual_dtype)

    def run_blocks(self, x_BNC, e0_B6C, text_BLC, grid):
        """Hidden states in token order -> those after the blocks, in the order of the last one."""
        head_dim = self.config.head_dim
        rotations = [self.sequence.rope(grid, order, head_dim) for order in self.distinct_orders]
        order = "token"
        for i, block in enumerate(self.blocks):
            if self.orders[i] != order:
                order = self.orders[i]
                x_BNC = self.sequence.switch(x_BNC, grid, order)
            cos, sin = rotations[self.place_of_order[i]]
            x_BNC = block(x_BNC, e0_B6C, text_BLC, cos, sin, grid, order)
        return x_BNC

    def in_last_order(self, x_BNC, grid):
        """Hidden states in token order -> in the order in which they leave the blocks."""
        order = self.orders[-1]
        return x_BNC if order == "token" else self.sequence.switch(x_BNC, grid, order)

    def project(self, x_BNC, e_BC, grid):
        """Hidden states in the last order -> velocity, fp32."""
        patches_BNK = self.sequence.leave(self.head(x_BNC, e_BC), grid, self.orders[-1])
        return unpatchify(patches_BNK, grid, self.config.patch_size)

    def embed_time(self, t_B):
        """Timestep [B] -> e [B, C] for the head and e0 [B, 6, C] for the blocks, fp32."""
        e_BC = self.time_embedding(self.sinusoid(t_B))
        return e_BC, self.time_projection(e_BC).reshape(e_BC.shape[0], 6, -1)

    def embed_text(self, text_BLC):
        """Text encoder output [B, L, text_dim] -> [B, text_len, C]."""
        batch, length, width = text_BLC.shape
        if length < self.config.text_len:
            padding = ops.zeros((batch, self.config.text_len - length, width), text_BLC.dtype)
            text_BLC = ops.cat((text_BLC, padding), 1)
        return self.text_embedding(text_BLC)


def _check_quantization(config, linear, cross_attention):
    for key, given, name in (("quant", linear, "linear"), ("quant_attention", cross_attention, "cross_attention")):
        if getattr(config, key) and given is None:
            raise ValueError(f"dit.{key} is {getattr(config, key)!r}, but no {name} is given that does it; "
                             "ospnext_ms.build.build_dit makes the network with it")


def _orders(patterns):
    """Order the sequence stands in at every block: sparse blocks need theirs, full ones leave it as it is."""
    orders, current = [], "token"
    for pattern in patterns:
        current = current if pattern == "full" else pattern
        orders.append(current)
    return tuple(orders)


def _token_grid(shape, patch_size):
    return (shape[2] // patch_size[0], shape[3] // patch_size[1], shape[4] // patch_size[2])


def _check_inputs(config, x_shape, t_shape, text_shape):
    patch = config.patch_size
    if len(x_shape) != 5 or x_shape[1] != config.in_channels or x_shape[3] % patch[1] or x_shape[4] % patch[2]:
        raise ValueError(
            f"latent has shape {x_shape}; expected [B, {config.in_channels}, T, a multiple of {patch[1]}, "
            f"a multiple of {patch[2]}]"
        )
    if t_shape != (x_shape[0],):
        raise ValueError(f"t has shape {t_shape}; expected ({x_shape[0]},)")
    if len(text_shape) != 3 or text_shape[0] != x_shape[0] or text_shape[2] != config.text_dim:
        raise ValueError(f"text has shape {text_shape}; expected [{x_shape[0]}, L, {config.text_dim}]")
    if text_shape[1] > config.text_len:
        raise ValueError(f"text has {text_shape[1]} tokens; dit.text_len is {config.text_len}")


def patchify(x_BCTHW, patch_size):
    """[B, C, T*pt, H*ph, W*pw] -> [B, T*H*W, C*pt*ph*pw], channel first inside a patch."""
    batch, channels, frames, height, width = x_BCTHW.shape
    pt, ph, pw = patch_size
    x = x_BCTHW.reshape(batch, channels, frames, height // ph, ph, width // pw, pw)
    x = x.transpose(0, 2, 3, 5, 1, 4, 6)
    return x.reshape(batch, -1, channels * pt * ph * pw)


def unpatchify(patches_BNK, grid, patch_size):
    """[B, T*H*W, ph*pw*C], channel last inside a patch -> [B, C, T, H*ph, W*pw]."""
    batch, _, width = patches_BNK.shape
    _, ph, pw = patch_size
    channels = width // (ph * pw)
    frames, rows, columns = grid
    x = patches_BNK.reshape(batch, frames, rows, columns, ph, pw, channels)
    x = x.transpose(0, 6, 1, 2, 4, 3, 5)
    return x.reshape(batch, channels, frames, rows * ph, columns * pw)
