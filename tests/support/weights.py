"""Weights put into MindSpore's networks."""

import numpy as np
from mindspore import Tensor


def set_weights(net, weights):
    """Loads a dict of NumPy arrays, rounded to the parameters' dtypes, into a network; every name must be there."""
    parameters = net.parameters_dict()
    assert set(parameters) == set(weights)
    for name, parameter in parameters.items():
        assert parameter.shape == weights[name].shape, name
        parameter.set_data(Tensor(weights[name], parameter.dtype))
    return net


def random_weights(net, seed=0):
    """Sets every parameter to random values, none of them zero, the same on all ranks."""
    rng = np.random.default_rng(seed)
    for name, parameter in net.parameters_and_names():
        fan_in = parameter.shape[-1] if len(parameter.shape) > 1 else 1
        scale = 0.02 if len(parameter.shape) == 1 else fan_in**-0.5
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        values = rng.normal(offset, scale, size=parameter.shape).astype(np.float32)
        parameter.set_data(Tensor(values))
