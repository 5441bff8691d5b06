"""The device of a run, what is set on it, and what networks that are no longer needed leave behind."""

import weakref
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ospnext_ms.config.sections import ContextSection
from ospnext_ms.runtime import release_memory, start


@pytest.mark.skipif(ms.get_context("device_target") == "Ascend", reason="checks what happens where there is no Ascend")
def test_devices_and_dtypes_that_are_not_there():
    with pytest.raises(ValueError, match="device_target is Ascend"):
        start(ContextSection(device_target="Ascend"))
    with pytest.raises(ValueError, match=r"dtype is bf16, but the CPU .* valid: fp32"):
        start(ContextSection(dtype="bf16"))
    runtime = start(ContextSection(device_target="CPU"))
    assert (runtime.device, runtime.dtype_name, runtime.compiled) == ("CPU", "fp32", True)


@pytest.mark.parametrize("compile_net", [lambda net: net, ms.jit])
def test_released_networks_leave_no_weights_behind(compile_net):
    net = ms.nn.Dense(3, 2)
    compile_net(net)(Tensor(np.ones((1, 3), np.float32)))
    weights = [weakref.ref(parameter) for parameter in net.get_parameters()]
    del net
    release_memory()
    assert [weight() for weight in weights] == [None, None]


def test_released_networks_run_again():
    net = ms.nn.Dense(3, 2)
    compiled = ms.jit(net)
    x = Tensor(np.ones((1, 3), np.float32))
    before = compiled(x).asnumpy()
    release_memory()
    assert (compiled(x).asnumpy() == before).all()


@pytest.mark.parametrize("device", ["Ascend", "CPU"])
def test_convolutions_on_ascend_are_not_rounded_to_hf32(monkeypatch, device):
    allowed = []
    precision = SimpleNamespace(conv_allow_hf32=allowed.append)
    monkeypatch.setattr(ms.device_context, "ascend", SimpleNamespace(op_precision=precision))
    monkeypatch.setattr(ms, "get_context", lambda name: device)
    start(ContextSection(device_target=device))
    assert allowed == [False] * (device == "Ascend")
