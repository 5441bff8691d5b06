"""The diffusion transformer of OSP-Next in packed order: nothing is padded, the fast form of `dit.OSPNextDiT`.

B batch, N tokens, C width, L text tokens, H heads, D head width. The raw patches are permuted into token order on
entry, the residual stream is gathered once at every switch between token and group blocks, the output patches are
permuted back; full blocks run in whatever order the sequence is in. Source: arXiv 2605.28691 on the network of Wan2.1
(arXiv 2503.20314); parameter names are those of the Wan2.1 checkpoints.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tools.torch_reference.dit import NORM_EPS, embed_time, linear_fp32
from tools.torch_reference.gpu.attention_backends import attention_backend
from tools.torch_reference.gpu.fused import default_kernels
from tools.torch_reference.gpu.sequence import PackedSequence


@dataclass(frozen=True)
class Execution:
    """How blocks compute: the owner of the token order, self- and cross-attention, the fused kernels, the dtype of the
    linears.

    `leaves_update`: a block leaves its last update, where its product has not done it, to the next one, which does it
    in the pass of its first norm.
    """

    sequence: Any
    attention: Any
    cross_attention: Any
    kernels: Any
    dtype: torch.dtype
    residual_dtype: torch.dtype
    leaves_update: bool = False

    def attention_of(self, scales, sparse):
        """Self-attention for q, k, v with these scales, Nones where they are no codes."""
        if scales[0] is None:
            return self.attention
        return self.attention.scaled(self.sequence.own_heads(scales, sparse))


class RMSNorm(nn.Module):
    """Weight of an RMS norm over the full width."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))


class Attention(nn.Module):
    """Projections shared by self- and cross-attention; q and k are RMS-normalised over the full width."""

    def __init__(self, dim, num_heads, dtype):
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, dtype=dtype) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim), RMSNorm(dim)

    def _add_output(self, stream, gate_BC, parts_BnHD, execution, shift_C=None):
        parts_BnC = [part_BnHD.flatten(2).to(execution.dtype) for part_BnHD in parts_BnHD]
        return execution.kernels.add_linear_of_parts(stream, gate_BC, parts_BnC, self.o, shift_C)


class SelfAttention(Attention):
    """Attention of the video tokens, full or inside the sub-sequences of the current order.

    Takes the stream [B, N, C], the gate and the normed x; returns what kernels.add_linear does.
    """

    def forward(self, stream, gate_BC, x, order, sparse, execution):
        kernels, sequence, heads = execution.kernels, execution.sequence, self.num_heads
        tables = order.cos_Nd, order.sin_Nd
        q, q_scale = kernels.query(kernels.linear(x, self.q), self.norm_q.weight, tables, heads)
        q = sequence.share(q, order, sparse)
        common_mean = partial(sequence.common_mean, sparse=sparse)
        k, k_scale = kernels.key(kernels.linear(x, self.k), self.norm_k.weight, tables, heads, common_mean)
        k = sequence.share(k, order, sparse)
        v, v_scale, shift_C = kernels.value(x, self.v, heads, common_mean)
        v = sequence.share(v, order, sparse)
        attention = execution.attention_of((q_scale, k_scale, v_scale), sparse)
        attend = sequence.attend_sparse if sparse else sequence.attend_full
        parts_BnHD = attend(attention, q, k, v, order)
        del q, k, v
        return self._add_output(stream, gate_BC, parts_BnHD, execution, shift_C)


class CrossAttention(Attention):
    """Every token attends to the whole text, padding included; keys and values are projected once per sample."""

    def forward(self, stream, x, text, execution):
        kernels, heads = execution.kernels, self.num_heads
        unrotated = None, None
        q, q_scale = kernels.query(kernels.linear(x, self.q), self.norm_q.weight, unrotated, heads)
        # The text is whole everywhere.
        k, k_scale = kernels.key(kernels.linear(text, self.k), self.norm_k.weight, unrotated, heads, lambda mean: mean)
        v, v_scale, _ = kernels.value(text, self.v, heads)
        attention = execution.cross_attention
        if q_scale is not None:
            attention = attention.scaled((q_scale, k_scale, v_scale))
        return self._add_output(stream, None, [attention(q, k, v)], execution)


class Block(nn.Module):
    """Self-attention, cross-attention and FFN; the first and the last modulated by the time embedding.

    x += gate_a * SelfAttention(norm1(x) * (1 + scale_a) + shift_a); x += CrossAttention(norm3(x), text);
    x += gate_f * FFN(norm2(x) * (1 + scale_f) + shift_f)

    `owed` is the update (y, gate) that the block before has left to this one, or None where its product added itself
    to x; with `gather_N` [N] the tokens are gathered after it, and x comes in the dtype in which it has travelled.
    Returns (x, what this block leaves: see Execution).
    """

    def __init__(self, config, dtype):
        super().__init__()
        dim = config.dim
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim))
        self.self_attn = SelfAttention(dim, config.num_heads, dtype)
        self.norm3 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cross_attn = CrossAttention(dim, config.num_heads, dtype)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim, dtype=dtype),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, dim, dtype=dtype),
        )

    def forward(self, x_BNC, owed, gather_N, e0_B6C, text, order, sparse, execution):
        kernels, dtype = execution.kernels, execution.dtype
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (self.modulation.float() + e0_B6C).unbind(1)
        norm3 = self.norm3.weight.float()[None], self.norm3.bias.float()[None]
        if owed is None and gather_N is None:
            n = kernels.norm(x_BNC, 1 + scale_a, shift_a, dtype)
        else:
            x_BNC, n = kernels.update_norm(x_BNC, *(owed or (None, None)), 1 + scale_a, shift_a, dtype, gather_N,
                                           execution.residual_dtype)
        x_BNC, owed = self.self_attn(x_BNC, gate_a, n, order, sparse, execution)
        x_BNC, n = kernels.update_norm(x_BNC, *(owed or (None, None)), *norm3, dtype)
        x_BNC, owed = self.cross_attn(x_BNC, n, text, execution)
        x_BNC, n = kernels.update_norm(x_BNC, *(owed or (None, None)), 1 + scale_f, shift_f, dtype)
        del owed
        hidden = kernels.linear_gelu(n, self.ffn[0])
        del n
        x_BNC, owed = kernels.add_linear(x_BNC, gate_f, hidden, self.ffn[2])
        return (x_BNC, owed) if owed is None or execution.leaves_update else (kernels.update(x_BNC, *owed), None)


class Head(nn.Module):
    """Modulated layer norm and the projection to patches, fp32: [B, N, C] -> [B, N, patch * channels]."""

    def __init__(self, dim, out_width):
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(1, 2, dim))
        self.head = nn.Linear(dim, out_width)

    def forward(self, x_BNC, e_BC, kernels):
        shift, scale = (self.modulation.float() + e_BC[:, None]).unbind(1)
        return linear_fp32(kernels.norm(x_BNC, 1 + scale, shift, torch.float32), self.head)


class PackedDiT(nn.Module):
    """Velocity of flow matching for a video latent.

    Args:
        config: ospnext_ms.models.config.DiTConfig.
        sequence: owner of the order of the tokens, default PackedSequence (the whole video on this device).
        residual_dtype: dtype of the residual stream, fp32 as in the original.
        dtype: dtype of the weights of the blocks' linears, patch and text embedding, and of the products but for the
            patch embedding's; norms, modulation, rotation, the time path and the head are fp32 always.
        attention: of attention_backends, default the one PyTorch chooses; `cross_attention`, an attribute, is the same
            unless set.
        kernels: see fused.py, default by device; `block_kernels`, an attribute, are those of every block where they
            differ (quantisation.py).

    Set `gradient_checkpointing` to recompute every block in the backward pass. Raises ValueError for a quantised
    configuration: quantisation.quantise makes an 8-bit model of a loaded one.
    """

    def __init__(self, config, sequence=None, residual_dtype=torch.float32, dtype=torch.float32, attention=None,
                 kernels=None):
        super().__init__()
        if config.quant is not None or config.quant_attention is not None:
            raise ValueError(f"quant is {config.quant!r}, quant_attention {config.quant_attention!r}; "
                             "PackedDiT has no HiFloat8 layers, valid: None")
        self.config = config
        self.sequence = sequence or PackedSequence(config.sparse_ratio)
        self.residual_dtype = residual_dtype
        self.dtype = dtype
        self.attention = attention or attention_backend("default")
        self.cross_attention = None
        self.kernels = kernels
        self.block_kernels = None
        self.gradient_checkpointing = False
        dim, patch = config.dim, config.patch_size
        self.patch_embedding = nn.Conv3d(config.in_channels, dim, patch, stride=patch, dtype=dtype)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim, dtype=dtype),
            nn.GELU(approximate="tanh"),
            nn.Linear(dim, dim, dtype=dtype),
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config, dtype) for _ in range(config.num_layers))
        self.head = Head(dim, patch[1] * patch[2] * config.out_channels)

    def with_layout(self, skiparse, num_full_blocks=None):
        """The same weights under another hybrid layout: a model that shares every parameter with this one."""
        config = replace(self.config, skiparse=skiparse, num_full_blocks=num_full_blocks)
        with torch.device("meta"):
            other = PackedDiT(config, self.sequence, self.residual_dtype, self.dtype, self.attention, self.kernels)
        other.load_state_dict(self.state_dict(keep_vars=True), assign=True)
        return other

    def forward(self, x_BCThw, t_B, text_BLC):
        """x [B, C, T, H, W], t [B] in [0, 1000], text [B, L <= text_len, text_dim] -> velocity [B, C, T, H, W] fp32.

        Raises ValueError where x does not divide into patches or the text is too long.
        """
        patches_BNK, grid = self._patchify(x_BCThw)
        e_BC, e0_B6C = embed_time(self, t_B)
        return self._velocity(*self._run_blocks(patches_BNK, grid, e0_B6C, text_BLC), e_BC, grid)

    def forward_with_added(self, x_BCThw, t_B, text_BLC):
        """(`forward`, what the blocks add to the residual stream [B, N, C] in natural order)."""
        patches_BNK, grid = self._patchify(x_BCThw)
        e_BC, e0_B6C = embed_time(self, t_B)
        x_BNC, pattern = self._run_blocks(patches_BNK, grid, e0_B6C, text_BLC)
        velocity = self._velocity(x_BNC, pattern, e_BC, grid)
        return velocity, self.sequence.leave(x_BNC, grid, pattern).sub_(self._embed_patches(patches_BNK))

    def project(self, x_BCThw, t_B, added_BNC):
        """Velocity where `added_BNC` stands for what the blocks add."""
        patches_BNK, grid = self._patchify(x_BCThw)
        x_BNC = self._embed_patches(patches_BNK) + added_BNC
        patches_BNK = self.head(x_BNC, embed_time(self, t_B)[0], self._kernels_on(x_BNC.device))
        return self._unpatchify(patches_BNK, grid)

    def _kernels_on(self, device):
        return self.kernels or default_kernels(device)

    def _run_blocks(self, patches_BNK, grid, e0_B6C, text_BLC):
        """(the residual stream after all blocks, the pattern in whose order it is)."""
        kernels = self._kernels_on(patches_BNK.device)
        executions = self.executions(kernels)
        text_BLC = self._embed_text(text_BLC)
        texts = {each.kernels: each.kernels.input_of_linear(text_BLC) for each in executions}
        x_BNC = self._embed_patches(self.sequence.enter(patches_BNK, grid))
        pattern, owed = "token", None
        for block, wanted, execution in zip(self.blocks, self.config.block_patterns, executions, strict=True):
            gather_N = None
            if wanted not in ("full", pattern):
                x_BNC, owed, gather_N = self.sequence.switch(x_BNC, owed, kernels, grid, wanted)
                pattern = wanted
            order = self.sequence.order(grid, pattern, self.config.head_dim, x_BNC.device)
            x_BNC, owed = self._run(block, x_BNC, owed, gather_N, e0_B6C, texts[execution.kernels], order,
                                    wanted != "full", execution)
        if owed is not None:
            x_BNC = kernels.update(x_BNC, *owed)
        return x_BNC, pattern

    def _velocity(self, x_BNC, pattern, e_BC, grid):
        patches_BNK = self.head(x_BNC, e_BC, self._kernels_on(x_BNC.device))
        return self._unpatchify(self.sequence.leave(patches_BNK, grid, pattern), grid)

    def executions(self, kernels=None):
        """The Execution of every block."""
        # With gradients a block would have to keep both x and y for the backward pass.
        leaves_update = not torch.is_grad_enabled()
        common = Execution(self.sequence, self.attention, self.cross_attention or self.attention,
                           kernels or self.kernels, self.dtype, self.residual_dtype, leaves_update)
        return [replace(common, kernels=each) for each in self.block_kernels or [common.kernels] * len(self.blocks)]

    def _run(self, block, *arguments):
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    def _patchify(self, x_BCThw):
        """[B, C, T, h*p, w*q] -> ([B, T*h*w, C*p*q], grid), channel first inside a patch."""
        _, p, q = self.config.patch_size
        batch, channels, frames, height, width = x_BCThw.shape
        if height % p or width % q:
            raise ValueError(f"latent of {height}x{width} does not divide into patches of {p}x{q}")
        grid = (frames, height // p, width // q)
        patches = x_BCThw.reshape(batch, channels, frames, grid[1], p, grid[2], q).permute(0, 2, 3, 5, 1, 4, 6)
        return patches.reshape(batch, frames * grid[1] * grid[2], channels * p * q), grid

    def _unpatchify(self, patches_BNK, grid):
        """[B, T*h*w, p*q*C] -> [B, C, T, h*p, w*q], channel last inside a patch."""
        _, p, q = self.config.patch_size
        frames, height, width = grid
        x = patches_BNK.reshape(-1, frames, height, width, p, q, self.config.out_channels)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(-1, self.config.out_channels, frames, height * p, width * q)

    def _embed_patches(self, patches_BNK):
        """In fp32: what is rounded here stays in the stream to the end."""
        weight, bias = self.patch_embedding.weight.flatten(1).float(), self.patch_embedding.bias.float()
        return F.linear(patches_BNK.float(), weight, bias).to(self.residual_dtype)

    def _embed_text(self, text_BLC):
        length = text_BLC.shape[1]
        if length > self.config.text_len:
            raise ValueError(f"text of {length} tokens is longer than text_len {self.config.text_len}")
        text_BLC = F.pad(text_BLC, (0, 0, 0, self.config.text_len - length)).to(self.dtype)
        return self.text_embedding(text_BLC)
