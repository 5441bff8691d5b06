"""How far the seconds of `plan --device` are from measured ones: the 14B in the PyTorch reference on one and two H100.

    python -m tools.experiments.seconds_on_paper

The shares of an H100's peaks that planning/devices.py holds are those which give three forwards of one device at 720P;
everything else is predicted. Prints the shares fitted and a table of all forwards.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ospnext_ms.config.sections import ParallelSection
from ospnext_ms.models.flops import forward_flops
from ospnext_ms.planning.devices import DEVICES, Device
from ospnext_ms.planning.seconds import forward_seconds
from ospnext_ms.planning.workload import Workload, read_workload

CONFIG = Path(__file__).parents[2] / "yaml_configs" / "generate" / "14b.yaml"
SIZES = {"720P": (720, 1280, 81), "768P": (768, 1344, 81)}
MODES = ("full", "sparse", "sparse, 8-bit linears")
# Seconds of a forward with FlashAttention-3 (tools/torch_reference/gpu/benchmark.py), NVIDIA H100 80GB HBM3: full
# attention, sparse, sparse with linears in e4m3. FITTED is the only one from which anything was taken.
FITTED = ("720P", 1)
MEASURED = {FITTED: (9.67, 5.60, 4.52), ("768P", 1): (11.64, 6.65, 5.43),
            ("720P", 2): (5.07, 2.95, 2.42), ("768P", 2): (6.16, 3.49, 2.87)}


def workloads(size: str, devices: int) -> list[Workload]:
    """The forward of each of MODES at a size, over `devices` with Sparse Sequence Parallelism."""
    work = read_workload(CONFIG, ("parallel_config={}",), None, SIZES[size])
    work = replace(work, parallel=ParallelSection(data_parallel=1, skiparse_parallel=devices))
    return [replace(work, dit=replace(work.dit, skiparse="full", num_full_blocks=None)), work,
            replace(work, dit=replace(work.dit, quant="hif8"))]


def predicted(size: str, devices: int, device: Device = DEVICES["H100"]) -> list[float]:
    """Seconds of each of MODES on paper."""
    return [sum(forward_seconds(work, device).values()) for work in workloads(size, devices)]


def fit_shares(full: float, sparse: float, eight_bit: float, device: Device = DEVICES["H100"]) -> dict[str, float]:
    """Shares of a device's peaks that give three forwards at 720P on one, with its bytes of everything else."""
    works = workloads(*FITTED)
    flops_full, flops_sparse = (forward_flops(work.dit, work.grid) for work in works[:2])
    # Full and sparse differ in attention alone, sparse and 8 bits in the linears alone.
    attention_rate = (flops_full["attention"] - flops_sparse["attention"]) / (full - sparse)
    attention = flops_sparse["attention"] / attention_rate
    rest = attention + forward_seconds(works[1], device)["elementwise"]
    return {"linear_share": flops_sparse["linear"] / (sparse - rest) / (device.bf16 * 1e12),
            "attention_share": attention_rate / (device.bf16 * 1e12),
            "eight_bit_share": flops_sparse["linear"] / (eight_bit - rest) / (device.eight_bit * 1e12)}


def table() -> str:
    """Predicted beside measured, as Markdown."""
    lines = ["| H100s | size | mode | predicted s | measured s | |", "|---|---|---|---|---|---|"]
    for (size, devices), measured in MEASURED.items():
        for mode, found, seconds in zip(MODES, predicted(size, devices), measured, strict=True):
            off = "fitted" if (size, devices) == FITTED else f"{100 * (found / seconds - 1):+.1f} %"
            lines.append(f"| {devices} | {size} | {mode} | {found:.2f} | {seconds:.2f} | {off} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the fit and the table; `arguments` instead of the command line's."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args(arguments)
    print(", ".join(f"{name} {share:.4f}" for name, share in fit_shares(*MEASURED[FITTED]).items()))
    print(table())


if __name__ == "__main__":
    main()
