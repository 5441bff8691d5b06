"""Which device runs."""

import mindspore as ms
from mindspore.ops import constexpr


def on_ascend():
    """True where MindSpore's device target is an Ascend NPU."""
    return ms.get_context("device_target") == "Ascend"


@constexpr
def for_ascend():
    """The same inside a function that may be compiled: the graph holds the branch of its own device only."""
    return on_ascend()
