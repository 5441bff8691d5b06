"""The DiT in both frameworks with the same random weights, and inputs for it."""

import numpy as np
import torch

from ospnext_ms.models.dit import OSPNextDiT
from tests.support.weights import set_weights
from tools.torch_reference.dit import OSPNextDiT as TorchDiT


def torch_twin(config, seed):
    """A torch_reference DiT with random weights everywhere (no zeros that would hide a path) and its MindSpore twin."""
    torch.manual_seed(seed)
    reference = TorchDiT(config)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            scale = 0.02 if name.endswith("bias") or parameter.ndim == 1 else 0.7 * parameter[0].numel() ** -0.5
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(offset, scale)
    net = OSPNextDiT(config)
    set_weights(net, {name: p.detach().numpy() for name, p in reference.named_parameters()})
    return net, reference


def random_inputs(config, grid, batch, text_len, seed=0):
    """x, t and text as fp32 arrays, t in [0, 1000]."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, config.in_channels, grid[0], 2 * grid[1], 2 * grid[2])).astype(np.float32)
    t = rng.uniform(0, 1000, size=batch).astype(np.float32)
    text = rng.normal(size=(batch, text_len, config.text_dim)).astype(np.float32)
    return x, t, text
