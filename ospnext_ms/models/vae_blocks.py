"""Building blocks of WanVAE (Wan2.1, arXiv 2503.20314), made for streaming a video in chunks.

Every block maps (x, past) to (y, past): `past` is the tuple of its `num_past` tensors of earlier input frames, ()
before the first chunk. Nothing is remembered in the block, so a chunk is a pure function and two kinds of chunk exist:
the first, and all later ones.

Legend: B batch, C channels, T frames of the chunk, H/W height and width, N pixels of a frame.
"""

from collections import OrderedDict

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import HeUniform, initializer

from ospnext_ms.kernels.attention import Attention, default_attention
from ospnext_ms.kernels.convolution import gather_conv3d, native_conv3d
from ospnext_ms.kernels.slices import chunk, narrow, pair
from ospnext_ms.models.config import VAE_BLOCKS, VAE_TIME_LEVELS, VAE_WIDTHS

# Two earlier frames are what a kernel of three frames sees.
PAST_FRAMES = 2
NORM_EPS = 1e-12
FLASH_HEAD_MULTIPLE = 16


class Convolution(nn.Cell):
    """Convolution in `dtype`, without padding in time; weight 5-D, or 4-D [O, C, h, w] for one that works per frame.

    Args:
        weight_shape: [O, C, t, h, w] or [O, C, h, w].
        stride: (t, h, w).
        pad: zeros (before, after) along height and width.
        convolution: "native" or "gather", see kernels.convolution.
    """

    num_past = 0

    def __init__(self, weight_shape, dtype, convolution, stride=(1, 1, 1), pad=(0, 0)):
        super().__init__()
        self.dtype = dtype
        self.native = convolution == "native"
        self.stride, self.pad = stride, pad
        self.kernel_shape = (*weight_shape[:2], *(1,) * (5 - len(weight_shape)), *weight_shape[2:])
        self.weight = Parameter(initializer(HeUniform(5**0.5), weight_shape, dtype), name="weight")
        self.bias = Parameter(initializer("zeros", weight_shape[:1], dtype), name="bias")

    def construct(self, x_BCTHW):
        x_BCTHW = x_BCTHW.astype(self.dtype)
        weight = self.weight.reshape(self.kernel_shape)
        if self.native:
            return native_conv3d(x_BCTHW, weight, self.bias, self.stride, self.pad)
        return gather_conv3d(x_BCTHW, weight, self.bias, self.stride, self.pad)


class CausalConvolution(Convolution):
    """Convolution over (t, h, w) = `kernel` with zeros around the frame and, in time, the past in front.

    The past is its last two input frames, zeros before the first chunk.
    """

    def __init__(self, in_channels, out_channels, kernel, dtype, convolution):
        super().__init__((out_channels, in_channels, *kernel), dtype, convolution, pad=(kernel[1] // 2, kernel[1] // 2))
        assert kernel[0] in (1, PAST_FRAMES + 1)
        self.num_past = int(kernel[0] > 1)

    def construct(self, x_BCTHW, past):
        x_BCTHW = x_BCTHW.astype(self.dtype)
        if self.num_past == 0:
            return super().construct(x_BCTHW), ()
        before = no_frames(x_BCTHW) if len(past) == 0 else past[0]
        x_BCTHW = ops.cat((before, x_BCTHW), 2)
        return super().construct(x_BCTHW), (last_frames(x_BCTHW, PAST_FRAMES),)


def last_frames(x_BCTHW, count):
    """A copy of the last frames: a view would keep all the others in memory with them."""
    return narrow(x_BCTHW, 2, x_BCTHW.shape[2] - count, count).contiguous()


def no_frames(x_BCTHW):
    """What stands for the two frames before the first: zeros."""
    batch, channels, _, height, width = x_BCTHW.shape
    return ops.zeros((batch, channels, PAST_FRAMES, height, width), x_BCTHW.dtype)


class ChannelNorm(nn.Cell):
    """x / ||x||_2 over channels, times sqrt(C), times gamma; computed in fp32, returned in the input's dtype."""

    num_past = 0

    def __init__(self, channels, gamma_dims=3):
        super().__init__()
        self.scale = channels**0.5
        self.gamma = Parameter(initializer("ones", (channels, *(1,) * gamma_dims), ms.float32), name="gamma")

    def construct(self, x_BCTHW, past):
        x = x_BCTHW.astype(ms.float32)
        norm = ops.sqrt(ops.square(x).sum(1, keepdims=True))
        gamma = self.gamma.reshape(1, -1, 1, 1, 1) * self.scale
        return (x / ops.maximum(norm, NORM_EPS) * gamma).astype(x_BCTHW.dtype), ()


class SiLU(nn.Cell):
    """x * sigmoid(x)."""

    num_past = 0

    def construct(self, x_BCTHW, past):
        return ops.silu(x_BCTHW), ()


class Identity(nn.Cell):
    """Stands where the PyTorch network has a layer without effect, so that the numbers in parameter names agree."""

    num_past = 0

    def construct(self, x_BCTHW, past):
        return x_BCTHW, ()


class Chain(nn.SequentialCell):
    """Blocks one after the other, each with its share of the past."""

    def __init__(self, blocks):
        super().__init__(blocks)
        self.num_past = sum(block.num_past for block in self.cell_list)

    def construct(self, x_BCTHW, past):
        start, new_past = 0, ()
        for block in self.cell_list:
            x_BCTHW, block_past = block(x_BCTHW, past[start : start + block.num_past])
            start += block.num_past
            new_past += block_past
        return x_BCTHW, new_past


class ResidualBlock(nn.Cell):
    """Norm, SiLU, convolution, twice, plus the input (through a 1x1x1 convolution where the width changes)."""

    def __init__(self, in_channels, out_channels, **conv):
        super().__init__()
        self.residual = Chain([
            ChannelNorm(in_channels), SiLU(), CausalConvolution(in_channels, out_channels, (3, 3, 3), **conv),
            ChannelNorm(out_channels), SiLU(), Identity(),
            CausalConvolution(out_channels, out_channels, (3, 3, 3), **conv),
        ])
        same = in_channels == out_channels
        self.shortcut = Identity() if same else CausalConvolution(in_channels, out_channels, (1, 1, 1), **conv)
        self.num_past = self.residual.num_past

    def construct(self, x_BCTHW, past):
        shortcut = self.shortcut(x_BCTHW, ())[0]
        x_BCTHW, past = self.residual(x_BCTHW, past)
        return x_BCTHW + shortcut, past


class SpatialAttention(nn.Cell):
    """Single-head self-attention inside every frame, added to its input."""

    num_past = 0

    def __init__(self, channels, dtype, convolution):
        super().__init__()
        self.norm = ChannelNorm(channels, gamma_dims=2)
        self.to_qkv = Convolution((3 * channels, channels, 1, 1), dtype, convolution)
        self.proj = Convolution((channels, channels, 1, 1), dtype, convolution)
        flash_takes_it = channels % FLASH_HEAD_MULTIPLE == 0
        self.attention = Attention(default_attention(dtype) if flash_takes_it else "blockwise")

    def construct(self, x_BCTHW, past):
        batch, channels, frames, height, width = x_BCTHW.shape
        normed = self.norm(x_BCTHW, ())[0]
        # Frames are the batch of the attention, pixels its tokens.
        qkv = self.to_qkv(normed).reshape(batch, 3, channels, frames, height * width)
        qkv = ops.transpose(qkv, (1, 0, 3, 4, 2)).reshape(3 * batch * frames, height * width, 1, channels)
        q, k, v = chunk(qkv, 3, 0)
        out = self.attention(q, k, v).reshape(batch, frames, height, width, channels)
        return x_BCTHW + self.proj(ops.transpose(out, (0, 4, 1, 2, 3))), ()


class Downsample(nn.Cell):
    """Halves height and width of every frame and, with `in_time`, the frame rate.

    The first chunk (one frame) keeps its frame. The past is the last frame, which the temporal convolution starts on.
    """

    def __init__(self, channels, in_time, dtype, convolution):
        super().__init__()
        conv = Convolution((channels, channels, 3, 3), dtype, convolution, stride=(1, 2, 2), pad=(0, 1))
        # The convolution is number 1 behind a padding layer in the parameters' names.
        self.resample = nn.SequentialCell(OrderedDict([("1", conv)]))
        self.num_past = int(in_time)
        if in_time:
            self.time_conv = Convolution((channels, channels, 3, 1, 1), dtype, convolution, stride=(2, 1, 1))

    def construct(self, x_BCTHW, past):
        x_BCTHW = self.resample(x_BCTHW)
        if self.num_past == 0:
            return x_BCTHW, ()
        new_past = (last_frames(x_BCTHW, 1),)
        if len(past) == 0:
            return x_BCTHW, new_past
        return self.time_conv(ops.cat((past[0], x_BCTHW), 2)), new_past


class Upsample(nn.Cell):
    """Doubles height and width of every frame and halves the channels; with `in_time` every frame becomes two.

    The first chunk (one frame) keeps its frame and leaves zeros as the past: the second does not see the first frame.
    """

    def __init__(self, channels, in_time, dtype, convolution):
        super().__init__()
        conv = Convolution((channels // 2, channels, 3, 3), dtype, convolution, pad=(1, 1))
        self.resample = nn.SequentialCell(OrderedDict([("1", conv)]))
        self.num_past = int(in_time)
        if in_time:
            self.time_conv = CausalConvolution(channels, 2 * channels, (3, 1, 1), dtype, convolution)

    def construct(self, x_BCTHW, past):
        if self.num_past == 0:
            return self.resample(nearest_2x(x_BCTHW)), ()
        if len(past) == 0:
            return self.resample(nearest_2x(x_BCTHW)), (no_frames(x_BCTHW),)
        batch, channels, frames, height, width = x_BCTHW.shape
        doubled, past = self.time_conv(x_BCTHW, past)
        pairs = ops.transpose(doubled.reshape(batch, 2, channels, frames, height, width), (0, 2, 3, 1, 4, 5))
        x_BCTHW = pairs.reshape(batch, channels, 2 * frames, height, width)
        return self.resample(nearest_2x(x_BCTHW)), past


def nearest_2x(x_BCTHW):
    """Every pixel as a square of four."""
    batch, channels, frames, height, width = x_BCTHW.shape
    columns = pair(x_BCTHW).reshape(batch, channels, frames, height, 2 * width)
    return ops.cat((columns, columns), -1).reshape(batch, channels, frames, 2 * height, 2 * width)


def _middle(width, conv):
    return Chain([ResidualBlock(width, width, **conv), SpatialAttention(width, **conv),
                  ResidualBlock(width, width, **conv)])


def _head(width, out_channels, conv):
    return Chain([ChannelNorm(width), SiLU(), CausalConvolution(width, out_channels, (3, 3, 3), **conv)])


def encoder(dim, out_channels, **conv):
    """Chunk of video [B, 3, 1 or 4, H, W] -> [B, out_channels, 1, H/8, W/8], as a Chain."""
    blocks, before = [], dim
    for level, multiplier in enumerate(VAE_WIDTHS):
        width = dim * multiplier
        for _ in range(VAE_BLOCKS["encoder"]):
            blocks.append(ResidualBlock(before, width, **conv))
            before = width
        if level < len(VAE_TIME_LEVELS):
            blocks.append(Downsample(width, VAE_TIME_LEVELS[level], **conv))
    return Chain(OrderedDict([
        ("conv1", CausalConvolution(3, dim, (3, 3, 3), **conv)),
        ("downsamples", Chain(blocks)),
        ("middle", _middle(before, conv)),
        ("head", _head(before, out_channels, conv)),
    ]))


def decoder(dim, in_channels, **conv):
    """One latent frame [B, in_channels, 1, H/8, W/8] -> [B, 3, 1 or 4, H, W], as a Chain."""
    top = dim * VAE_WIDTHS[-1]
    blocks, before = [], top
    for level, multiplier in enumerate(reversed(VAE_WIDTHS)):
        width = dim * multiplier
        for _ in range(VAE_BLOCKS["decoder"]):
            blocks.append(ResidualBlock(before, width, **conv))
            before = width
        if level < len(VAE_TIME_LEVELS):
            blocks.append(Upsample(width, VAE_TIME_LEVELS[-1 - level], **conv))
            before = width // 2
    return Chain(OrderedDict([
        ("conv1", CausalConvolution(in_channels, top, (3, 3, 3), **conv)),
        ("middle", _middle(top, conv)),
        ("upsamples", Chain(blocks)),
        ("head", _head(before, 3, conv)),
    ]))
