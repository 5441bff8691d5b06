"""HiF8 matrix products and their gradients. M, K, N are rows and columns of matrices.

Quantised numbers pass from `Quantize` to `MatMul` in whatever form the back end has for them: hifloat8 where it is
native; elsewhere floating-point numbers that are HiF8 values, which have at most 4 significant bits and so are exact in
bf16 too.
"""

import math

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr
from mindspore.ops.auto_generate import GroupedMatmulV4

from ospnext_ms.kernels.hif8_operators import ALONE, Decode, Quantize, Scale, no_gradient

FP16_MAX = 65504.0


class NativeMatMul(nn.Cell):
    """a b / 2^k: a [M, K] and b [K, N] hifloat8 -> fp16 [M, N], and 2^k, a number.

    A grouped product of one group: of CANN's operators for two hifloat8 matrices, the only one that MindSpore 2.9 has
    for compiled graphs, and it types the result as fp16 (docs/ascend.md). k is the least with which no result can
    overflow, so of fp16's 11 bits all are there down to 2^-14, far below the noise of 8-bit operands. Arguments are
    given by position, because a graph of gradients takes none by name.

    Args:
        bound: |a b| of two entries never exceeds it.
    """

    def __init__(self, bound):
        super().__init__()
        self.bound = bound
        self.grouped_matmul = GroupedMatmulV4()

    def construct(self, a_MK, b_KN):
        rows, columns = a_MK.shape
        power = _power_of_two(self.bound * columns / FP16_MAX)
        scale = Tensor([1 / power], ms.float32)
        # x, weight, bias, scale, offset, antiquant scale and offset, scale of x, group list, three of an activation;
        # one output, groups along M, given by their sizes, no activation.
        out = self.grouped_matmul((a_MK,), (b_KN.expand_dims(0),), None, (scale,), None, None, None, None,
                                  Tensor([rows], ms.int64), None, None, None, 3, 0, 1, 0, None)
        return out[0], power


@constexpr
def _power_of_two(value):
    """The least power of two, of 1 at least, that is not below `value`."""
    return 2.0 ** max(0, math.ceil(math.log2(value)))


class MatMul(nn.Cell):
    """a b^T * (a_factor * b_factor) of quantised matrices; `transpose_a`: a^T b^T; `plain_b`: a b.

    Args:
        native: see the module. dtype: of the output. bound: |a b| of two entries never exceeds it.

    Inputs: a [M, K] ([K, M] if transpose_a), b [N, K] ([K, N] if plain_b), both from `Quantize`; a_factor and b_factor
    fp32 [1], the reciprocals of their scales. Output [M, N].
    """

    def __init__(self, native, dtype, bound, transpose_a=False, plain_b=False):
        super().__init__()
        self.native = native
        self.dtype = dtype
        self.transpose_a = transpose_a
        self.plain_b = plain_b
        self.matmul = NativeMatMul(bound) if native else ops.MatMul(transpose_a, not plain_b)

    def construct(self, a, b, a_factor, b_factor):
        factor = a_factor * b_factor
        if self.native:
            a = a.swapaxes(0, 1) if self.transpose_a else a
            b = b if self.plain_b else b.swapaxes(0, 1)
            y, power = self.matmul(a, b)
            factor = factor * power
        else:
            y = self.matmul(a, b)
        return (y.astype(ms.float32) * factor).astype(self.dtype)


class HiF8Product(nn.Cell):
    """x8 w8^T / (s_x s_w), x8 = round(s_x x) and w8 = round(s_w w), with gradients that are products in HiF8 too:

        dx = g8 w8 / (s_g s_w),  dw = g8^T x8 / (s_g s_x)      g8 = round(s_g dy), s_g = scale_max_backward / amax(dy)

    They pass straight through the roundings. x and w are rounded anew in the backward pass, to the same numbers, so
    that nothing but the inputs is kept for it.

    Args:
        native: by the device's own HiF8. dtype: of the output. scale_max_forward: |s_x x| and |s_w w| never exceed it.
        group: ProcessGroup of the ranks that share s_g.

    Inputs: x [M, K], w [N, K] of any float dtype, their scales fp32 [1]. Output [M, N].
    """

    def __init__(self, native, dtype, scale_max_forward, scale_max_backward, group=ALONE):
        super().__init__()
        self.quantize = Quantize(native, dtype, scale_max_forward)
        self.quantize_gradient = Quantize(native, dtype, scale_max_backward)
        self.gradient_scale = Scale(scale_max_backward, group)
        backward = scale_max_forward * scale_max_backward
        self.matmul = MatMul(native, dtype, scale_max_forward**2)
        self.matmul_x = MatMul(native, dtype, backward, plain_b=True)
        self.matmul_w = MatMul(native, ms.float32, backward, transpose_a=True, plain_b=True)

    def construct(self, x_MK, w_NK, x_scale, w_scale):
        return self.matmul(self.quantize(x_MK, x_scale), self.quantize(w_NK, w_scale), 1 / x_scale, 1 / w_scale)

    def bprop(self, x_MK, w_NK, x_scale, w_scale, out, dout):
        g_scale = self.gradient_scale(dout)
        g8 = self.quantize_gradient(dout, g_scale)
        dx = self.matmul_x(g8, self.quantize(w_NK, w_scale), 1 / g_scale, 1 / w_scale)
        dw = self.matmul_w(g8, self.quantize(x_MK, x_scale), 1 / g_scale, 1 / x_scale)
        return dx.astype(x_MK.dtype), dw.astype(w_NK.dtype), ops.zeros_like(x_scale), ops.zeros_like(w_scale)


class HiF8FrozenProduct(nn.Cell):
    """HiF8Product with the codes of a w that is never trained: the same numbers, bit for bit, and no gradient of w.

    Inputs: x [M, K] of any float dtype, the codes of round(s_w w) [N, K] in a held_parameter, the scales of x and w
    fp32 [1]. Output [M, N]. Decoded numbers live no longer than the product. Arguments as of HiF8Product.
    """

    def __init__(self, native, dtype, scale_max_forward, scale_max_backward, group=ALONE):
        super().__init__()
        self.quantize = Quantize(native, dtype, scale_max_forward)
        self.quantize_gradient = Quantize(native, dtype, scale_max_backward)
        self.decode = Decode(native, dtype)
        self.gradient_scale = Scale(scale_max_backward, group)
        self.matmul = MatMul(native, dtype, scale_max_forward**2)
        self.matmul_x = MatMul(native, dtype, scale_max_forward * scale_max_backward, plain_b=True)

    def construct(self, x_MK, codes_NK, x_scale, w_scale):
        return self.matmul(self.quantize(x_MK, x_scale), self.decode(codes_NK), 1 / x_scale, 1 / w_scale)

    def bprop(self, x_MK, codes_NK, x_scale, w_scale, out, dout):
        g_scale = self.gradient_scale(dout)
        dx = self.matmul_x(self.quantize_gradient(dout, g_scale), self.decode(codes_NK), 1 / g_scale, 1 / w_scale)
        return dx.astype(x_MK.dtype), no_gradient(codes_NK), ops.zeros_like(x_scale), ops.zeros_like(w_scale)
