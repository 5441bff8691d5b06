"""Products with a weight."""

from mindspore import ops

from ospnext_ms.kernels.device import for_ascend


def add_bias(y, bias):
    """y [M, out] + bias [out]. BiasAdd is the faster one on CPU, and on the legacy operator path on Ascend."""
    return y + bias if for_ascend() else ops.BiasAdd()(y, bias)


def project(x, weight, bias=None):
    """x [..., in], weight [out, in] and bias [out] of one dtype -> x weight^T + bias [..., out].

    On CPU twice as fast as ops.dense.
    """
    y = ops.MatMul(transpose_b=True)(x.reshape(-1, x.shape[-1]), weight)
    if bias is not None:
        y = add_bias(y, bias)
    return y.reshape(*x.shape[:-1], weight.shape[0])
