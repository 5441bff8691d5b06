"""Measures whole forwards: every mode with every choice of kernels, on one GPU and shared by several."""

import time
from dataclasses import asdict, dataclass, replace
from itertools import product
from statistics import median

import torch
import torch.distributed as dist

from ospnext_ms.models.flops import forward_flops
from tools.torch_reference.gpu import fused
from tools.torch_reference.gpu.attention_backends import attention_backend
from tools.torch_reference.gpu.attention_float8 import HIF8_RECIPE, AttentionRecipe
from tools.torch_reference.gpu.float8 import E4M3_SCALINGS
from tools.torch_reference.gpu.parallel import SWITCH_DTYPE
from tools.torch_reference.gpu.profiling import print_profile, profile_block
from tools.torch_reference.gpu.quantisation import quantise
from tools.torch_reference.gpu.report import options_of
from tools.torch_reference.gpu.sequence import PackedSequence
from tools.torch_reference.gpu.settings import random_inputs, random_model
from tools.torch_reference.gpu.timing import peak_memory_gib, relative_error, reset_peak_memory, synchronize, timed

_E4M3 = AttentionRecipe()
# (scaling of the linears, recipe of attention) of the modes that quantise, Nones where they leave bf16.
EIGHT_BIT = {
    "sparse-8bit": ("bound", None),
    "sparse-8bit-attention": ("bound", _E4M3),
    "sparse-attention-only-8bit": (None, _E4M3),
    "sparse-8bit-current": ("tensor", None),
    "sparse-8bit-attention-current": ("tensor", replace(_E4M3, scale="tensor")),
    "sparse-8bit-rows": ("row", None),
    "sparse-hif8-emulated": ("hif8", None),
    "sparse-hif8-attention-emulated": ("hif8", HIF8_RECIPE),
}
MODES = ("full", "sparse", *EIGHT_BIT)
RESIDUAL = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Variant:
    """One row of the table. `degrees` (S, U), (1, 1) for one GPU; `exchange` and `switch_dtype` see
    parallel.ParallelSequence; `keep_bf16` see quantisation.quantise; `residual` of RESIDUAL.
    """

    mode: str
    kernels: str
    residual: str = "fp32"
    keep_bf16: int = 0
    degrees: tuple = (1, 1)
    exchange: str | None = None
    switch_dtype: str = SWITCH_DTYPE

    @property
    def gpus(self):
        return self.degrees[0] * self.degrees[1]

    @property
    def name(self):
        shared = f", {self.degrees[0]}x{self.degrees[1]} {self.exchange}" if self.exchange else ""
        options = options_of(vars(self))
        return f"{self.mode}, {self.kernels}{shared}{', ' if options else ''}{options}"

    @property
    def eight_bit(self):
        """Which of "matmul" and "attention" run on e4m3 codes."""
        scaling, recipe = EIGHT_BIT.get(self.mode, (None, None))
        attention = recipe is not None and recipe.number_format == "e4m3"
        return (("matmul",) if scaling in E4M3_SCALINGS else ()) + (("attention",) if attention else ())


def variants(args):
    """What the command line asks for, in the order of measuring. Full attention knows no SSP: it is all Ulysses."""
    chosen = []
    for mode, kernels, residual in product(sorted(args.mode, key=MODES.index), args.kernels, args.residual):
        for keep in args.keep_bf16 if mode in EIGHT_BIT else [0]:
            variant = Variant(mode, kernels, residual, keep)
            if args.gpus == 1 or args.single_gpu:
                chosen.append(variant)
            if args.gpus > 1:
                chosen += [replace(variant, **shared) for shared in _shared(args, mode)]
    return chosen


def _shared(args, mode):
    """Degrees, exchange and payload of the rows on several GPUs: each choice only where it makes a difference."""
    for degrees in [(1, args.gpus)] if mode == "full" else args.degrees:
        for exchange, switch_dtype in product(args.exchange, args.switch_dtype):
            if (exchange == args.exchange[0] or degrees[1] > 1 or mode == "full") and (
                    switch_dtype == args.switch_dtype[0] or degrees[0] > 1):
                yield {"degrees": degrees, "exchange": exchange, "switch_dtype": switch_dtype}


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
        key = variant.degrees, variant.exchange, variant.switch_dtype
        return self._once(key, lambda: ParallelSequence(
            self.config.sparse_ratio, self.config.num_heads, mesh, variant.exchange, variant.switch_dtype))

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
        exact = self._output_of_bf16(variant) if variant.mode in EIGHT_BIT else None
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
        if variant.mode in EIGHT_BIT:
            # They are replaced one by one, so that the peak is that of the 8-bit model alone.
            self._weights = None
        base.residual_dtype = RESIDUAL[variant.residual]
        return prepare(base, variant.mode, variant.kernels, self.backends, self.sequences.of(variant),
                       variant.keep_bf16)

    def _output_of_bf16(self, variant):
        # Switches send 16 bits: what 8 bits there cost is part of the error.
        variant = replace(variant, mode="sparse", keep_bf16=0, switch_dtype=SWITCH_DTYPE)
        if variant not in self._exact:
            with torch.inference_mode():
                self._exact[variant] = self._model(variant)(*self.inputs)
        return self._exact[variant]


def prepare(base, mode, kernels, backends, sequence, keep_bf16=0):
    """A model that shares the weights of `base`, ready to run; 8-bit: `base` itself, its block linears replaced.

    `backends` {"full", "sparse", "cross" and the same with "-8bit": name}.
    """
    layout = ("full",) if mode == "full" else (base.config.skiparse, base.config.num_full_blocks)
    model = base if mode in EIGHT_BIT else base.with_layout(*layout)
    scaling, recipe = EIGHT_BIT.get(mode, (None, None))
    suffix = "-8bit" if recipe is not None and recipe.number_format == "e4m3" else ""
    model.attention = attention_backend(backends[("full" if mode == "full" else "sparse") + suffix])
    model.cross_attention = attention_backend(backends["cross" + suffix])
    model.sequence = sequence
    implementation = "eager" if kernels == "compiled" else kernels
    model.kernels = fused.kernels(implementation)
    if mode in EIGHT_BIT:
        quantise(model, implementation, scaling, recipe, keep_bf16)
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
    row = {**asdict(variant), "name": variant.name, "gpus": variant.gpus, "eight_bit": variant.eight_bit,
           "warm_up": warm_up, "flops": forward_flops(model.config, grid), **error,
           **_worst_process({"seconds": seconds, "peak_memory_gib": peak_memory_gib(device), "sent": sent})}
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
    sent = "".join(f", {kind} {count / 1e6:.0f} MB" for kind, count in row["sent"].items())
    error = f", error against bf16 {row['error']:.2e}" if "error" in row else ""
    print(f"{row['name']}: {row['median']:.3f} ± {spread:.3f} s, {rate:.0f} TFLOP/s{memory}, "
          f"first run {row['warm_up']:.1f} s{sent}{error}", flush=True)
