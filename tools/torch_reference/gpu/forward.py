"""Measures whole forwards: every mode with every choice of kernels, on one GPU and shared by several."""

import time
from dataclasses import dataclass, replace
from statistics import median

import torch
import torch.distributed as dist

from ospnext_ms.models.flops import forward_flops
from tools.torch_reference.gpu import fused
from tools.torch_reference.gpu.attention_backends import attention_backend
from tools.torch_reference.gpu.profiling import print_profile, profile_block
from tools.torch_reference.gpu.sequence import PackedSequence
from tools.torch_reference.gpu.settings import random_inputs, random_model
from tools.torch_reference.gpu.timing import peak_memory_gib, relative_error, reset_peak_memory, synchronize, timed

MODES = ("full", "sparse", "sparse-8bit", "sparse-8bit-rows", "sparse-hif8-emulated")
# float8.SCALINGS of the modes that quantise.
SCALING = {"sparse-8bit": "tensor", "sparse-8bit-rows": "row", "sparse-hif8-emulated": "hif8"}


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
        from tools.torch_reference.gpu.parallel import ParallelSequence, create_mesh

        mesh = self._once(variant.degrees, lambda: create_mesh(*variant.degrees, self.device.type))
        return self._once((variant.degrees, variant.exchange), lambda: ParallelSequence(
            self.config.sparse_ratio, self.config.num_heads, mesh, variant.exchange))

    def _once(self, key, build):
        if key not in self._made:
            self._made[key] = build()
        return self._made[key]


def measure_forwards(args, config, grid, device, dtype, backends, result, guard):
    """Appends a row a variant to result["measurements"]. `guard(name, function)` keeps failures from ending the run."""
    measuring = _Measuring(config, grid, device, dtype, backends, args)
    for variant in variants(args):
        row = guard(variant.name, lambda v=variant: measuring.row(v))
        if row is not None:
            result["measurements"].append(row)
            _print_row(row)
            if args.profile and device.type == "cuda" and variant.gpus == 1:
                row["profile"] = guard("profile", lambda v=variant: measuring.profile(v))
        reset_peak_memory(device)


class _Measuring:
    """The weights, which are drawn again after a variant that quantised them in place, and the inputs."""

    def __init__(self, config, grid, device, dtype, backends, args):
        self.config, self.grid, self.device, self.dtype, self.backends, self.args = (
            config, grid, device, dtype, backends, args)
        self.inputs = random_inputs(config, grid, device)
        self.sequences = Sequences(config, device)
        self._weights = None
        self._exact = {}

    def row(self, variant):
        """One row of the table."""
        exact = self._output_of_bf16(variant) if variant.mode in SCALING else None
        return _measure(self._model(variant), variant, exact, self.inputs, self.args.repeats, self.device)

    def profile(self, variant):
        """Profile of a block, printed; the full block's is that of mode full."""
        title = f"{variant.name}: one {'full' if variant.mode == 'full' else 'sparse'} block"
        summary = profile_block(self._model(variant), self.grid, variant.mode != "full", self.device)
        print_profile(title, summary)
        return summary

    def _model(self, variant):
        if self._weights is None:
            self._weights = random_model(self.config, self.device, self.dtype)
        base = self._weights
        if variant.mode in SCALING:
            # They are replaced one by one, so that the peak is that of the 8-bit model alone.
            self._weights = None
        attention = attention_backend(self.backends["full" if variant.mode == "full" else "sparse"])
        return prepare(base, variant.mode, variant.kernels, attention, self.sequences.of(variant))

    def _output_of_bf16(self, variant):
        variant = replace(variant, mode="sparse")
        if variant not in self._exact:
            with torch.inference_mode():
                self._exact[variant] = self._model(variant)(*self.inputs)
        return self._exact[variant]


def prepare(base, mode, kernels, attention, sequence):
    """A model that shares the weights of `base`, ready to run; 8-bit: `base` itself, its block linears replaced."""
    layout = ("full",) if mode == "full" else (base.config.skiparse, base.config.num_full_blocks)
    model = base if mode in SCALING else base.with_layout(*layout)
    model.attention, model.sequence = attention, sequence
    model.kernels = fused.kernels("eager" if kernels == "compiled" else kernels)
    if mode in SCALING:
        from tools.torch_reference.gpu.float8 import quantise

        quantise(model, SCALING[mode], "eager" if kernels == "compiled" else kernels)
    if kernels == "compiled":
        for block in model.blocks:
            block.compile(dynamic=False)
    return model


def _measure(model, variant, exact, inputs, repeats, device):
    """A row of the table; `exact` is the output without quantisation where the variant has one, else None."""

    def forward():
        with torch.inference_mode():
            return model(*inputs)

    begin = time.perf_counter()
    out = forward()
    synchronize(device)
    warm_up = time.perf_counter() - begin
    assert out.isfinite().all(), "the output is not finite"
    error = {} if exact is None else {"error": relative_error(out, exact)}
    del out
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
           **error, **_worst_process({"seconds": seconds, "peak_memory_gib": peak_memory_gib(device), "sent": sent})}
    row["median"] = median(row["seconds"])
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


def _print_row(row):
    spread = (max(row["seconds"]) - min(row["seconds"])) / 2
    rate = row["flops"]["total"] / row["median"] / 1e12
    memory = "" if row["peak_memory_gib"] is None else f", peak {row['peak_memory_gib']:.1f} GiB"
    shared = "" if row["gpus"] == 1 else f", {row['degrees'][0]}x{row['degrees'][1]} {row['exchange']}"
    sent = "".join(f", {kind} {count / 1e6:.0f} MB" for kind, count in row["sent"].items())
    error = f", error against bf16 {row['error']:.2e}" if "error" in row else ""
    print(f"{row['mode']}, {row['kernels']}{shared}: {row['median']:.3f} ± {spread:.3f} s, {rate:.0f} TFLOP/s{memory}, "
          f"first run {row['warm_up']:.1f} s{sent}{error}", flush=True)
