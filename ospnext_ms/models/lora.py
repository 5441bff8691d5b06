"""Low-rank adapters (LoRA, arXiv 2106.09685) on named linear layers of a network whose own weights stay frozen.

y = x W^T + b + on * (alpha / rank) * (x A^T) B^T, with A [rank, in] and B [out, rank]. `on` is 1 or 0: with 0 the
network is exactly the frozen one, which is how one set of weights in memory serves as both policy and reference.
"""

import contextlib
import math
import re

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from ospnext_ms.kernels.assign import assign_values
from ospnext_ms.kernels.linear import project
from ospnext_ms.models.lora_config import LoRAConfig

__all__ = ["Adapters", "LoRAConfig", "LowRank"]


class LowRank(nn.Cell):
    """scaling * (x A^T) B^T, times the switch. Parameters lora_A [rank, in] and lora_B [out, rank], fp32.

    B starts at zero, so that a new adapter changes nothing.

    Args:
        in_channels, out_channels: of the linear it belongs to. config: LoRAConfig. dtype: compute dtype.
        switch: Parameter [] fp32, 1 or 0, shared by all adapters of a network.
        rng: NumPy generator of A's start, uniform within +- 1 / sqrt(in) (as PEFT).

    Input x [..., in] of any float dtype; output [..., out] in `dtype`.
    """

    def __init__(self, in_channels, out_channels, config, dtype, switch, rng):
        super().__init__()
        bound = 1 / math.sqrt(in_channels)
        start = rng.uniform(-bound, bound, (config.rank, in_channels)).astype(np.float32)
        self.lora_A = Parameter(Tensor(start), name="lora_A")
        self.lora_B = Parameter(Tensor(np.zeros((out_channels, config.rank), np.float32)), name="lora_B")
        self.switch = switch
        self.scaling = config.scaling
        self.dtype = dtype

    def construct(self, x):
        down = project(x.astype(self.dtype), self.lora_A.astype(self.dtype))
        return project(down, self.lora_B.astype(self.dtype)) * (self.switch * self.scaling).astype(self.dtype)


class Adapters:
    """The adapters of a network. Making them freezes the network and adds a LowRank to every linear that fits.

    The network's own parameter names do not change; load its weights first, since afterwards it has more parameters.
    Linears are cells with the attributes `weight` [out, in], `dtype` and `adapter` (None until now).

    Args:
        net: a Cell. config: LoRAConfig. seed: of the adapters' start.

    Raises:
        ValueError: a target that fits no linear (the layer names it could mean are listed), or a network that has
            adapters already.
    """

    def __init__(self, net, config, seed=0):
        self.config = config
        linears = {name: cell for name, cell in net.cells_and_names() if hasattr(cell, "adapter")}
        if any(cell.adapter is not None for cell in linears.values()):
            raise ValueError("the network has adapters already; load values into them instead of adding others")
        self._linears = {name: cell for name, cell in linears.items() if config.fits(name)}
        _check_targets(config.targets, linears)
        for parameter in net.get_parameters():
            parameter.requires_grad = False
        self._switch = Parameter(Tensor(1.0, ms.float32), name="adapter_switch", requires_grad=False)
        rng = np.random.default_rng([seed, 0x10A])
        for name, cell in self._linears.items():
            out_channels, in_channels = cell.weight.shape
            adapter = LowRank(in_channels, out_channels, config, cell.dtype, self._switch, rng)
            cell.adapter = adapter
            # Joining the tree has named them all alike.
            adapter.lora_A.name, adapter.lora_B.name = f"{name}.lora_A", f"{name}.lora_B"
        self._switch.name = "adapter_switch"

    @property
    def parameters(self):
        """The trained parameters, A and B of every layer in turn, named LAYER.lora_A and LAYER.lora_B."""
        adapters = [cell.adapter for cell in self._linears.values()]
        return [parameter for adapter in adapters for parameter in (adapter.lora_A, adapter.lora_B)]

    @contextlib.contextmanager
    def disabled(self):
        """Inside the block the network is the frozen one. A value changes, not the graph: nothing is compiled anew."""
        assign_values(self._switch, np.float32(0))
        try:
            yield
        finally:
            assign_values(self._switch, np.float32(1))

    def arrays(self, values=None):
        """{layer: (A, B)} as NumPy fp32; `values` takes the place of `parameters` (an average of them)."""
        values = self.parameters if values is None else values
        arrays = [value.asnumpy().astype(np.float32) for value in values]
        return {name: (arrays[2 * i], arrays[2 * i + 1]) for i, name in enumerate(self._linears)}

    def load(self, arrays):
        """Takes over {layer: (A, B)}.

        Raises:
            ValueError: other layers or shapes than the adapters have; nothing is changed then.
        """
        problems = [f"missing: {name}" for name in self._linears if name not in arrays]
        problems += [f"unexpected: {name}" for name in arrays if name not in self._linears]
        for name in self._linears.keys() & arrays.keys():
            adapter = self._linears[name].adapter
            for parameter, array in zip((adapter.lora_A, adapter.lora_B), arrays[name], strict=True):
                if tuple(parameter.shape) != array.shape:
                    problems.append(f"{parameter.name} has shape {array.shape} instead of {tuple(parameter.shape)}")
        if problems:
            raise ValueError(f"the adapter does not fit the network ({len(problems)} problems): "
                             + "; ".join(problems[:5]))
        for name, (a, b) in arrays.items():
            assign_values(self._linears[name].adapter.lora_A, a)
            assign_values(self._linears[name].adapter.lora_B, b)


def _check_targets(targets, linears):
    for target in targets:
        if not any(LoRAConfig(rank=1, alpha=1.0, targets=(target,)).fits(name) for name in linears):
            known = sorted({re.sub(r"^blocks\.\d+\.", "", name) for name in linears})
            raise ValueError(f"lora.targets: {target!r} fits no linear layer; there are {', '.join(known)}")
