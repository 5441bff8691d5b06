"""Sums and means over whole tensors."""

from mindspore import mint

from ospnext_ms.kernels.device import for_ascend


def mean(x):
    """Mean of all entries, a scalar."""
    return mint.mean(x) if for_ascend() else x.mean()


def mean_per_sample(x):
    """Mean over all axes but the first: [B, ...] -> [B]."""
    axes = tuple(range(1, x.ndim))
    return mint.mean(x, axes) if for_ascend() else x.mean(axes)
