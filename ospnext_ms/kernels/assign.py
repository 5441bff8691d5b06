"""Values into a parameter that compiled graphs already use."""

import numpy as np
from mindspore import Tensor, ops

from ospnext_ms.kernels.device import for_ascend


def add_in_place(parameter, change):
    """parameter += change; returns something that depends on it."""
    return parameter.add_(change) if for_ascend() else ops.assign_add(parameter, change)


def assign_values(parameter, values: np.ndarray):
    """Writes values into a parameter's own memory, cast to its dtype.

    Not set_data: a graph that was compiled before keeps the memory the parameter had then, and would go on with the
    old values (MindSpore 2.9).
    """
    ops.assign(parameter, Tensor(values, parameter.dtype))
