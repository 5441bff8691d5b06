"""What a device can do, as its maker states it, and what share of that this network's kernels reach.

Rates of products are dense, in TFLOP/s; of memory and links in GB/s, of links one way, for one device. Shares are
fitted to measurements on one H100 (docs/results/gpu.md): 14B, 720P, full 9.67 s, sparse 5.60 s and sparse with 8-bit
linears 4.52 s a forward, of which 0.4 s are neither products nor attention. For Ascend, where nothing has been
measured, they are taken over.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

LINEAR_SHARE, ATTENTION_SHARE, EIGHT_BIT_SHARE = 0.750, 0.6975, 0.673
# Of a link's rate, in collectives of many megabytes; an assumption.
LINK_SHARE = 0.7


@dataclass(frozen=True)
class Device:
    """A device and the links of its hosts.

    Args:
        bf16, eight_bit: peak of products. linear_share, attention_share (of bf16), eight_bit_share: reached of it.
        memory: rate. elementwise: bytes that everything but products and attention moves, for each value of the
            residual stream and each block; of fused kernels on NVIDIA as fitted, of MindSpore's operators as counted.
        inside, across: link rates in a host and between hosts; `in_host` devices share one.
        source: where the rates are stated.
    """

    bf16: float
    eight_bit: float
    memory: float
    elementwise: float
    inside: float
    across: float
    in_host: int
    source: str
    linear_share: float = LINEAR_SHARE
    attention_share: float = ATTENTION_SHARE
    eight_bit_share: float = EIGHT_BIT_SHARE
    link_share: float = LINK_SHARE


FUSED, SINGLE_OPERATORS = 86.5, 312.0

DEVICES = {
    "H100": Device(989.4, 1978.9, 3350, FUSED, 450, 50, 8,
                   "NVIDIA H100 SXM data sheet, without sparsity; NVLink 4: 900 GB/s both ways; NDR 400 Gb/s a device"),
    "H200": Device(989.4, 1978.9, 4800, FUSED, 450, 50, 8,
                   "NVIDIA H200 SXM data sheet, without sparsity; NVLink 4: 900 GB/s both ways; NDR 400 Gb/s a device"),
    "910B": Device(376, 0, 1600, SINGLE_OPERATORS, 196, 25, 8,
                   "Atlas 800T A2 white paper as quoted in the press: 376 TFLOP/s, HBM 1.6 TB/s, HCCS 392 GB/s both "
                   "ways; RoCE 200 Gb/s a device; no 8-bit floating point"),
    "950PR": Device(500, 1000, 1600, SINGLE_OPERATORS, 1000, 50, 8,
                    "Huawei Connect 2025: 1 PFLOP/s in 8 bits (bf16 taken as half), 1.6 TB/s, 2 TB/s of links both "
                    "ways; between hosts 400 Gb/s a device is an assumption"),
}


def device_of(name: str, overrides: Iterable[str] = ()) -> Device:
    """The Device of a name, with KEY=NUMBER of some of its fields in the place of its own.

    Raises:
        ValueError: an unknown device or key, or a value that is no positive number.
    """
    if name not in DEVICES:
        raise ValueError(f"--device is {name!r}; valid: {', '.join(DEVICES)}")
    device, keys = DEVICES[name], [field.name for field in fields(Device) if field.name != "source"]
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
        device = replace(device, **{key: int(number) if key == "in_host" else number})
    return device
