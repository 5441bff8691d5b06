"""Measures whole forwards: every mode with every choice of kernels, on one GPU and shared by several."""

import time
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist

from ospnext_ms.models.flops import forward_flops
from tools.torch_reference import fused
from tools.torch_reference.attention_backends import attention_backend
from tools.torch_reference.profiling import print_profile, profile_block
from tools.torch_reference.sequence import PackedSequence
from tools.torch_reference.settings import random_inputs, random_model
from tools.torch_reference.timing import peak_memory_gib, reset_peak_memory, synchronize, timed

MODES = ("full", "sparse", "sparse-8bit", "sparse-8bit-rows")


@dataclass(frozen=True)
class Variant:
    """One row of the table. `degrees` (S, U), (1, 1) for one GPU; `exchange` see parallel.ParallelSequence."""

    mode: str
    kernels: str
    degrees: tuple = (1, 1)
    exchange: str | None = None

    @property
    def gpus(self):
        return self.degrees[0] * self.degrees[1]

    @property
    def name(self):
        shared = f", {self.degrees[0]}x{self.degrees[1]} {self.exchange}" if self.exchange else ""
        return f"{self.mode}, {self.kernels}{shared}"


def variants(args):
    """What the command line asks for, in the order of measuring. Full attention knows no SSP: it is all Ulysses."""
    chosen = []
    for mode in sorted(args.mode, key=MODES.index):
        for kernels in args.kernels:
            if args.gpus == 1 or args.single_gpu:
                chosen.append(Variant(mode, kernels))
            if args.gpus > 1:
                degrees = [(1, args.gpus)] if mode == "full" else args.degrees
                chosen += [Variant(mode, kernels, pair, exchange) for pair in degrees for exchange in args.exchange
                           if exchange == args.exchange[0] or pair[1] > 1 or mode == "full"]
    return chosen


class Sequences:
    """The sequence object of each variant, made once; a mesh once per pair of degrees."""

    def __init__(self, config, device):
        self.config, self.device = config, device
        self._made = {}

    def of(self, variant):
        if variant.gpus == 1:
            return self._once("one", lambda: PackedSequence(self.config.sparse_ratio))
        from tools.torch_reference.parallel import ParallelSequence, create_mesh

        mesh = self._once(variant.degrees, lambda: create_mesh(*variant.degrees, self.device.type))
        return self._once((variant.degrees, variant.exchange), lambda: ParallelSequence(
            self.config.sparse_ratio, self.config.num_heads, mesh, variant.exchange))

    def _once(self, key, build):
        if key not in self._made:
            self._made[key] = build()
        return self._made[key]


def measure_forwards(args, config, grid, device, dtype, backends, result, guard):
    """Appends a row a variant to result["measurements"]. `guard(name, function)` keeps failures from ending the run."""
    base = random_model(config, device, dtype)
    inputs = random_inputs(config, grid, device)
    sequences = Sequences(config, device)
    for variant in variants(args):
        attention = attention_backend(backends["full" if variant.mode == "full" else "sparse"])
        row = guard(variant.name, lambda v=variant, a=attention: _measure(
            prepare(base, v.mode, v.kernels, a, sequences.of(v)), v, base, inputs, args.repeats, device))
        if row is not None:
            result["measurements"].append(row)
            _print_row(row)
            if args.profile and device.type == "cuda" and variant.gpus == 1:
                model = prepare(base, variant.mode, variant.kernels, attention, sequences.of(variant))
                row["profile"] = guard("profile", lambda m=model, v=variant: _profile(m, v, grid, device))
        reset_peak_memory(device)


def prepare(base, mode, kernels, attention, sequence):
    """A model that shares the weights of `base` (8-bit: its own copy of the block linears), ready to run."""
    config = base.config
    model = base.with_layout("full") if mode == "full" else base.with_layout(config.skiparse, config.num_full_blocks)
    model.attention, model.sequence = attention, sequence
    model.kernels = fused.kernels("eager" if kernels == "compiled" else kernels)
    if mode.startswith("sparse-8bit"):
        from tools.torch_reference.float8 import quantise

        quantise(model, "row" if mode.endswith("rows") else "tensor", "eager" if kernels == "compiled" else kernels)
    if kernels == "compiled":
        for block in model.blocks:
            block.compile(dynamic=False)
    return model


def _measure(model, variant, base, inputs, repeats, device):
    def forward():
        with torch.inference_mode():
            return model(*inputs)

    begin = time.perf_counter()
    out = forward()
    synchronize(device)
    warm_up = time.perf_counter() - begin
    assert out.isfinite().all(), "the output is not finite"
    reset_peak_memory(device)
    traffic = getattr(model.sequence, "traffic", None)
    if traffic:
        traffic.by_kind.clear()
    seconds = timed(forward, repeats, device, warm_up=0)
    sent = {kind: count // repeats for kind, count in traffic.by_kind.items()} if traffic else {}
    grid = (inputs[0].shape[2], inputs[0].shape[3] // model.config.patch_size[1],
            inputs[0].shape[4] // model.config.patch_size[2])
    row = {"mode": variant.mode, "kernels": variant.kernels, "gpus": variant.gpus, "degrees": variant.degrees,
           "exchange": variant.exchange, "warm_up": warm_up, "flops": forward_flops(model.config, grid),
           **_worst_process({"seconds": seconds, "peak_memory_gib": peak_memory_gib(device), "sent": sent})}
    row["median"] = median(row["seconds"])
    if "8bit" in variant.mode:
        from tools.torch_reference.float8 import error_against_bf16

        row["error"] = error_against_bf16(base, model, inputs)
    return row


def _worst_process(measured):
    """The slowest process of each repeat, the largest peak; bytes sent are the mean of the processes."""
    if not dist.is_initialized():
        return dict(measured, bytes_sent=sum(measured["sent"].values()))
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, measured)
    sent = {kind: sum(each["sent"][kind] for each in gathered) // len(gathered) for kind in measured["sent"]}
    peaks = [each["peak_memory_gib"] for each in gathered]
    return {"seconds": [max(repeat) for repeat in zip(*(each["seconds"] for each in gathered), strict=True)],
            "peak_memory_gib": None if None in peaks else max(peaks), "sent": sent, "bytes_sent": sum(sent.values())}


def _profile(model, variant, grid, device):
    """Profile of a block, printed; the full block's is that of mode full."""
    title = f"{variant.name}: one {'full' if variant.mode == 'full' else 'sparse'} block"
    summary = profile_block(model, grid, variant.mode != "full", device)
    print_profile(title, summary)
    return summary


def _print_row(row):
    spread = (max(row["seconds"]) - min(row["seconds"])) / 2
    rate = row["flops"]["total"] / row["median"] / 1e12
    memory = "" if row["peak_memory_gib"] is None else f", peak {row['peak_memory_gib']:.1f} GiB"
    shared = "" if row["gpus"] == 1 else f", {row['degrees'][0]}x{row['degrees'][1]} {row['exchange']}"
    sent = "".join(f", {kind} {count / 1e6:.0f} MB" for kind, count in row["sent"].items())
    error = f", error against bf16 {row['error']:.2e}" if "error" in row else ""
    print(f"{row['mode']}, {row['kernels']}{shared}: {row['median']:.3f} ± {spread:.3f} s, {rate:.0f} TFLOP/s{memory}, "
          f"first run {row['warm_up']:.1f} s{sent}{error}", flush=True)
