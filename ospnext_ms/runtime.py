"""Device, execution mode and dtype of a run, and giving memory back between networks."""

import gc
from dataclasses import dataclass

import mindspore as ms
from mindspore import nn

from ospnext_ms.kernels.device import compute_convolutions_in_fp32
from ospnext_ms.parallel.mesh import start_processes

DTYPES = {"fp32": ms.float32, "bf16": ms.bfloat16}


@dataclass(frozen=True)
class Runtime:
    """What runs: device "CPU" or "Ascend", compute dtype, and whether networks are compiled."""

    device: str
    dtype: ms.Type
    compiled: bool

    @property
    def dtype_name(self):
        """ "fp32" or "bf16"."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)

    @property
    def tries_threads(self):
        """Whether MindSpore tries numbers of threads in the first steps, which are slow therefore."""
        return self.compiled and self.device == "CPU"

    def about(self, processes):
        """What a report says of it: {name: value}."""
        return {"device": self.device, "processes": processes, "compute dtype": self.dtype_name,
                "mode": "graph" if self.compiled else "pynative"}

    def compile(self, net):
        """The Cell as a callable, compiled into a graph unless the run asks for PyNative."""
        return ms.jit(net) if self.compiled else net


def start(context):
    """Selects the device of a ContextSection and resolves what it leaves on auto.

    Raises:
        ValueError: the device is not there, or does not compute in the dtype.
    """
    # A device can be set once only, before the first operator.
    if context.device_target not in ("auto", ms.get_context("device_target")):
        _select(context.device_target)
    device = ms.get_context("device_target")
    if device == "CPU":
        # Queues between Python and the operators hide a device's latency. The CPU has none, and their threads spin
        # while they wait: uncompiled networks took five times the processor time, and more with several processes.
        ms.runtime.launch_blocking()
    compute_convolutions_in_fp32()
    name = context.dtype
    if name == "auto":
        name = "bf16" if device == "Ascend" else "fp32"
    if name == "bf16" and device == "CPU":
        raise ValueError("context.dtype is bf16, but the CPU has no matrix products in bf16; valid: fp32")
    return Runtime(device, DTYPES[name], context.mode == "graph")


def start_run(config):
    """Selects the device of a training configuration and joins the processes of msrun: (Runtime, parallel.mesh.Mesh).

    Raises:
        ValueError: see start.
    """
    runtime = start(config.context)
    return runtime, start_processes(config.parallel_config)


def _select(device):
    try:
        ms.set_device(device)
    except RuntimeError as error:
        first_line = str(error).strip().split("\n")[0]
        raise ValueError(f"context.device_target is {device}, which MindSpore cannot use here: {first_line}") from error
    # Without CANN some versions only log the failure and go on on another device.
    if ms.get_context("device_target") != device:
        raise ValueError(f"context.device_target is {device}, but MindSpore runs on {ms.get_context('device_target')}")


class _Identity(nn.Cell):
    def construct(self, x):
        return x + 0


def release_memory():
    """Frees what networks without a reference still hold: their graphs, their weights, the device's memory pool.

    All graphs compiled so far are dropped; those still needed are compiled anew at their next call.
    """
    gc.collect()
    ms.ms_memory_recycle()
    # MindSpore keeps the weights of the last Cell it compiled until it compiles another.
    ms.jit(_Identity())(ms.Tensor([0.0], ms.float32))
    gc.collect()
    ms.runtime.empty_cache()
