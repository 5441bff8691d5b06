"""What a device can do, as its maker states it, and what share of that this network's kernels reach.

Rates of products are dense, in TFLOP/s; of memory and links in GB/s, of links one way, for one device. Shares are
fitted to three forwards of the 14B at 720P on one H100 (tools/experiments/seconds_on_paper.py). For Ascend, where
nothing has been measured, they are taken over. Where each rate is stated: docs/plan.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

LINEAR_SHARE, ATTENTION_SHARE, EIGHT_BIT_SHARE = 0.750, 0.6975, 0.673
# Of a link's rate, in collectives of many megabytes; an assumption.
LINK_SHARE = 0.7
# 16 lanes, one way.
PCIE_4, PCIE_5 = 32, 64


@dataclass(frozen=True)
class Device:
    """A device and the links of its hosts.

    Args:
        bf16, eight_bit: peak of products. linear_share, attention_share (of bf16), eight_bit_share: reached of it.
        memory: rate. elementwise: bytes that everything but products and attention moves, for each value of the
            residual stream and each block; of fused kernels on NVIDIA as fitted, of MindSpore's operators as counted.
        inside, across, host: link rates in a host, between hosts, and from a host's memory to one device; `in_host`
            devices share a host.
        source: where the rates are stated. estimated: names of those that are neither stated nor measured.
    """

    bf16: float
    eight_bit: float
    memory: float
    elementwise: float
    inside: float
    across: float
    in_host: int
    source: str
    estimated: tuple[str, ...]
    linear_share: float = LINEAR_SHARE
    attention_share: float = ATTENTION_SHARE
    eight_bit_share: float = EIGHT_BIT_SHARE
    link_share: float = LINK_SHARE
    host: float = PCIE_5


FUSED, SINGLE_OPERATORS = 86.5, 312.0

DEVICES = {
    # https://www.nvidia.com/en-us/data-center/h100 and /h200: bf16 1,979 and FP8 3,958 TFLOP/s with sparsity, which
    # doubles them; NVLink 900 GB/s both ways. DGX H100, H200: one 400 Gb/s port a device.
    "H100": Device(989.4, 1978.9, 3350, FUSED, 450, 50, 8, "NVIDIA's H100 data sheet, SXM, without sparsity",
                   ("link_share",)),
    "H200": Device(989.4, 1978.9, 4800, FUSED, 450, 50, 8, "NVIDIA's H200 data sheet, SXM, without sparsity",
                   ("linear_share", "attention_share", "eight_bit_share", "link_share")),
    # 376 TFLOP/s, as it is sold, are 353.9 of matrix and 22.1 of vector units (24 cores, 1.8 GHz):
    # https://gitcode.com/cann/ops-cv/issues/997, https://gitcode.com/Ascend/DrivingSDK (performance-predict).
    # HCCS 392 GB/s both ways over seven links, 200GE a device: Atlas 800T A2,
    # https://support.huawei.com/enterprise/zh/doc/EDOC1100317202/f3dba488.
    "910B": Device(353.9, 0, 1600, SINGLE_OPERATORS, 196, 25, 8,
                   "CANN's table of the 910B2 and Huawei's Atlas 800T A2 specification; slower kinds are sold",
                   ("linear_share", "attention_share", "link_share", "host"), host=PCIE_4),
    # bf16 432, HiF8 865 TFLOP/s, 1.6 TB/s, 128 GB: Ascend 950 NPU architecture white paper, table 3-1, server grade, as
    # quoted in the same issue and in https://gitcode.com/cann/ops-transformer/issues/5487. The announcement (Huawei
    # Connect 2025) rounds to 1 PFLOP/s in FP8 and HiF8 and states 1.6 TB/s and 2 TB/s of links, read as both
    # ways together.
    "950PR": Device(432, 865, 1600, SINGLE_OPERATORS, 1000, 50, 8,
                    "Ascend 950 NPU architecture white paper, server grade, and Huawei Connect 2025",
                    ("across", "in_host", "linear_share", "attention_share", "eight_bit_share", "link_share", "host")),
}


def device_of(name: str, overrides: Iterable[str] = ()) -> Device:
    """The Device of a name, with KEY=NUMBER of some of its fields in the place of its own.

    Raises:
        ValueError: an unknown device or key, or a value that is no positive number.
    """
    if name not in DEVICES:
        raise ValueError(f"--device is {name!r}; valid: {', '.join(DEVICES)}")
    device = DEVICES[name]
    keys = [field.name for field in fields(Device) if field.name not in ("source", "estimated")]
    for text in overrides:
        key, _, value = text.partition("=")
        if key not in keys:
            raise ValueError(f"--device-set {text}: unknown key; valid: {', '.join(keys)}")
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            raise ValueError(f"--device-set {text}: must be KEY=NUMBER, the number above 0")
        device = replace(device, estimated=tuple(name for name in device.estimated if name != key),
                         **{key: int(number) if key == "in_host" else number})
    return device
