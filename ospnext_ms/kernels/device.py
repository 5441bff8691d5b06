"""Which device runs."""

import mindspore as ms
from mindspore.ops import constexpr


def on_ascend():
    """True where MindSpore's device target is an Ascend NPU."""
    return ms.get_context("device_target") == "Ascend"


def compute_convolutions_in_fp32():
    """Otherwise CANN rounds what fp32 convolutions (the VAE's) read to the 11 bits of HF32."""
    if on_ascend():
        ms.device_context.ascend.op_precision.conv_allow_hf32(False)


@constexpr
def for_ascend():
    """The same inside a function that may be compiled: the graph holds the branch of its own device only."""
    return on_ascend()
