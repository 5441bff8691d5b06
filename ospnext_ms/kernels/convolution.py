"""3-D convolution in two implementations of one contract.

MindSpore's CPU convolutions fall back to a reference loop (about 1 GFLOP/s); gathering the taps and multiplying
matrices is 40 to 100 times faster there. On Ascend the convolution operator is the fast one, and its bf16 form is
mint's.

Legend: B batch, C channels, T frames, H/W height and width, K taps times channels.
"""

import numpy as np
from mindspore import Tensor, mint, ops

from ospnext_ms.kernels.device import on_ascend

CONVOLUTIONS = ("native", "gather")
# Gathered elements held at once: 128 MiB in fp32. Frames that need more are worked on in blocks of pixels.
ELEMENTS_PER_BLOCK = 2**25


def default_convolution():
    """"native" on Ascend, "gather" elsewhere."""
    return "native" if on_ascend() else "gather"


def native_conv3d(x_BCTHW, weight, bias, stride, pad):
    """Convolution without padding in time, with zeros `pad` = (before, after) along height and width alike.

    x [B, C, T, H, W], weight [O, C, kt, kh, kw] and bias [O] in one dtype, stride (t, h, w).
    Returns [B, O, T', H', W'] in that dtype.
    """
    before, after = pad
    if before == after:
        return mint.nn.functional.conv3d(x_BCTHW, weight, bias, stride, (0, before, before))
    # The operator pads both sides alike only, and ops.pad fails to compile in bf16.
    padded = _pad_with_zeros(_pad_with_zeros(x_BCTHW, before, after, 3), before, after, 4)
    return mint.nn.functional.conv3d(padded, weight, bias, stride, (0, 0, 0))


def gather_conv3d(x_BCTHW, weight, bias, stride, pad):
    """Contract of `native_conv3d` as a matrix product: the frames' taps side by side in channels, pixels gathered.

    Working memory: the input three times over and ELEMENTS_PER_BLOCK gathered elements.
    """
    batch, channels, frames, height, width = x_BCTHW.shape
    out_channels, _, kernel_t, kernel_h, kernel_w = weight.shape
    out_frames = (frames - kernel_t) // stride[0] + 1
    out_height = (height + pad[0] + pad[1] - kernel_h) // stride[1] + 1
    out_width = (width + pad[0] + pad[1] - kernel_w) // stride[2] + 1
    weight_OK = ops.transpose(weight, (0, 3, 4, 2, 1)).reshape(out_channels, -1)
    x_BTNC = ops.transpose(x_BCTHW.reshape(batch, channels, -1), (0, 2, 1)).reshape(batch, frames, -1, channels)
    if kernel_h == kernel_w == 1:
        rows_FNK = _taps_in_time(x_BTNC, kernel_t, stride[0], out_frames)
        y_OL = _product(weight_OK, rows_FNK)
    else:
        # Pixels outside the frame are gathered from one more row, of zeros.
        x_BTNC = ops.cat((x_BTNC, ops.zeros((batch, frames, 1, channels), x_BTNC.dtype)), 2)
        rows_FNK = _taps_in_time(x_BTNC, kernel_t, stride[0], out_frames)
        taps = pixel_taps(height, width, (kernel_h, kernel_w), stride[1:], pad)
        y_OL = _gathered_product(weight_OK, rows_FNK, taps, out_height * out_width)
    y_BOL = y_OL.reshape(1, out_channels, -1)
    if batch > 1:
        y_BOL = ops.transpose(y_OL.reshape(out_channels, batch, -1), (1, 0, 2))
    return ops.bias_add(y_BOL.reshape(batch, out_channels, out_frames, out_height, out_width), bias)


@ops.constexpr
def pixel_taps(height, width, kernel, stride, pad):
    """Row-major input pixel of every (output pixel, kernel row, kernel column); `height * width` stands for padding."""
    rows = stride[0] * np.arange((height + sum(pad) - kernel[0]) // stride[0] + 1)
    columns = stride[1] * np.arange((width + sum(pad) - kernel[1]) // stride[1] + 1)
    y = rows[:, None, None, None] + np.arange(kernel[0])[:, None] - pad[0]
    x = columns[:, None, None] + np.arange(kernel[1]) - pad[0]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return Tensor(np.where(inside, y * width + x, height * width).reshape(-1).astype(np.int32))


def _pad_with_zeros(x, before, after, axis):
    shapes = [x.shape[:axis] + (amount,) + x.shape[axis + 1 :] for amount in (before, after)]
    if before > 0:
        x = ops.cat((ops.zeros(shapes[0], x.dtype), x), axis)
    if after > 0:
        x = ops.cat((x, ops.zeros(shapes[1], x.dtype)), axis)
    return x


def _taps_in_time(x_BTNC, kernel_t, stride_t, out_frames):
    """[B, T, N, C] -> [B * T', N, kt * C]."""
    batch, _, pixels, channels = x_BTNC.shape
    if kernel_t > 1 or stride_t > 1:
        span = stride_t * (out_frames - 1) + 1
        x_BTNC = ops.cat([x_BTNC[:, tap : tap + span : stride_t] for tap in range(kernel_t)], 3)
    return x_BTNC.reshape(batch * out_frames, pixels, kernel_t * channels)


def _product(weight_OK, rows_FNK):
    """[O, K], [F, N, K] -> [O, F * N]."""
    return ops.MatMul(transpose_b=True)(weight_OK, rows_FNK.reshape(-1, weight_OK.shape[1]))


def _gathered_product(weight_OK, rows_FNK, taps, out_pixels):
    """Product of the weights with the gathered rows, `out_pixels` a frame; [O, F * out_pixels]."""
    frames = rows_FNK.shape[0]
    out_channels, width = weight_OK.shape
    taps_per_pixel = taps.shape[0] // out_pixels
    step = max(1, ELEMENTS_PER_BLOCK // (frames * width))
    blocks = []
    for start in range(0, out_pixels, step):
        stop = min(start + step, out_pixels)
        gathered = ops.gather(rows_FNK, taps[start * taps_per_pixel : stop * taps_per_pixel], 1)
        block = _product(weight_OK, gathered.reshape(frames, stop - start, width))
        blocks.append(block.reshape(out_channels, frames, stop - start))
    y_OFN = blocks[0] if len(blocks) == 1 else ops.cat(blocks, 2)
    return y_OFN.reshape(out_channels, -1)
