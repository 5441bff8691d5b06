"""Which device runs."""

import mindspore as ms


def on_ascend():
    """True where MindSpore's device target is an Ascend NPU."""
    return ms.get_context("device_target") == "Ascend"
