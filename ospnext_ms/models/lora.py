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
from ospnext_ms.kernels.fan_out import fan_out
from ospnext_ms.kernels.linear import project
from ospnext_ms.models.lora_config import LoRAConfig

__all__ = ["Adapters", "LoRAConfig", "LowRank", "attach"]


class LowRank(nn.Cell):
    """scaling * (x A^T) B^T, times the switch. Parameters lora_A [rank, in] and lora_B [out, rank].

    Args:
        a, b: fp32 arrays, the start of the two. dtype: compute dtype. param_dtype: of the parameters, default fp32.
        scaling, switch: float, and Parameter [] fp32, 1 or 0, shared by all adapters of a network. Without a switch
            neither is multiplied in.

    Input x [..., in] of any float dtype; output [..., out] in `dtype`. `both` gives the layer and this the same x.
    """

    def __init__(self, a, b, dtype, scaling=1.0, switch=None, param_dtype=ms.float32):
        super().__init__()
        self.lora_A = Parameter(Tensor(a, param_dtype), name="lora_A")
        self.lora_B = Parameter(Tensor(b, param_dtype), name="lora_B")
        self.switch = switch
        self.scaling = scaling
        self.dtype = dtype
        self.both = fan_out(2)

    def construct(self, x):
        down = project(x.astype(self.dtype), self.lora_A.astype(self.dtype))
        up = project(down, self.lora_B.astype(self.dtype))
        return up if self.switch is None else up * (self.switch * self.scaling).astype(self.dtype)


def attach(net, arrays):
    """Puts adapters beside linears of a network that is used, not trained: y += x A^T B^T.

    Load the network's weights by their names from before, since afterwards it has more parameters.

    Args:
        net: a Cell, whose linears are as in `Adapters`. arrays: {layer: (A [rank, in], B [out, rank])} fp32, on as many
            layers as one likes, of any ranks.

    Raises:
        ValueError: layers that the network has not, or of another size (listed).
    """
    linears = _linears(net)
    odd = [f"{layer} is {_size(linears.get(layer))} for A {a.shape} and B {b.shape}" for layer, (a, b) in arrays.items()
           if layer not in linears or (*b.shape[:1], *a.shape[1:]) != tuple(linears[layer].weight.shape)]
    if odd:
        raise ValueError(f"the adapter does not fit the network ({len(odd)} layers): {'; '.join(odd[:5])}")
    for layer, (a, b) in arrays.items():
        adapter = LowRank(a, b, linears[layer].dtype, param_dtype=linears[layer].dtype)
        linears[layer].adapter = adapter
        _name(adapter, layer)
        for parameter in adapter.get_parameters():
            parameter.requires_grad = False


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
        linears = _linears(net)
        self._linears = {name: cell for name, cell in linears.items() if config.fits(name)}
        _check_targets(config.targets, linears)
        for parameter in net.get_parameters():
            parameter.requires_grad = False
        self._switch = Parameter(Tensor(1.0, ms.float32), name="adapter_switch", requires_grad=False)
        rng = np.random.default_rng([seed, 0x10A])
        for name, cell in self._linears.items():
            adapter = LowRank(*_start(cell, config.rank, rng), cell.dtype, config.scaling, self._switch)
            cell.adapter = adapter
            _name(adapter, name)
        self._switch.name = "adapter_switch"

    @property
    def parameters(self):
        """The trained parameters, A and B of every layer in turn, named LAYER.lora_A and LAYER.lora_B."""
        return list(self.named_parameters.values())

    @property
    def named_parameters(self):
        """{LAYER.lora_A or LAYER.lora_B: parameter}, whatever MindSpore has made of their own names since."""
        return {f"{name}.{which}": getattr(cell.adapter, which)
                for name, cell in self._linears.items() for which in ("lora_A", "lora_B")}

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


def _linears(net):
    """{name: cell} of the linears that can have an adapter; ValueError where they have some."""
    linears = {name: cell for name, cell in net.cells_and_names() if hasattr(cell, "adapter")}
    if any(cell.adapter is not None for cell in linears.values()):
        raise ValueError("the network has adapters already; load values into them instead of adding others")
    return linears


def _start(cell, rank, rng):
    """A, uniform within +- 1 / sqrt(in) (as PEFT), and B, zero, so that a new adapter changes nothing."""
    out_channels, in_channels = cell.weight.shape
    bound = 1 / math.sqrt(in_channels)
    a = rng.uniform(-bound, bound, (rank, in_channels)).astype(np.float32)
    return a, np.zeros((out_channels, rank), np.float32)


def _name(adapter, layer):
    # Joining the tree has named them all alike.
    adapter.lora_A.name, adapter.lora_B.name = f"{layer}.lora_A", f"{layer}.lora_B"


def _size(linear):
    return "no linear layer" if linear is None else f"[{', '.join(map(str, linear.weight.shape))}]"


def _check_targets(targets, linears):
    for target in targets:
        if not any(LoRAConfig(rank=1, alpha=1.0, targets=(target,)).fits(name) for name in linears):
            known = sorted({re.sub(r"^blocks\.\d+\.", "", name) for name in linears})
            raise ValueError(f"lora.targets: {target!r} fits no linear layer; there are {', '.join(known)}")
