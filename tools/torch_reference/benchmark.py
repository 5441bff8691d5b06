"""Time of a whole DiT forward in packed order: full attention, sparse, sparse with 8-bit linears.

    python -m tools.torch_reference.benchmark --setting 720p --mode full sparse --repeats 5 --output DIR
    python -m tools.torch_reference.benchmark --setting 720p --gpus 8 --skiparse-parallel 4 --ulysses-parallel 2
    python -m tools.torch_reference.benchmark --plot FILE.png --output DIR

Weights are random, created on the GPU; a forward is the whole network (embeddings, every block, head) of one sample.
Prints each measurement as it is made, then a table: median of the repeats and half their spread, arithmetic rate, the
time of the same arithmetic at the ceilings measured in this run, peak memory, speed-up over full and the paper's.
"""

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from statistics import median

import torch
import torch._dynamo

from ospnext_ms.files import atomic_path
from ospnext_ms.models.flops import forward_flops
from tools.torch_reference import fused
from tools.torch_reference.attention_backends import BACKENDS, attention_backend
from tools.torch_reference.microbenchmark import fastest_attention, microbenchmark
from tools.torch_reference.profiling import print_profile, profile_block
from tools.torch_reference.report import plot, print_table
from tools.torch_reference.settings import MODELS, SETTINGS, random_inputs, random_model
from tools.torch_reference.timing import ceilings, peak_memory_gib, reset_peak_memory, synchronize, timed

MODES = ("full", "sparse", "sparse-8bit")
KERNELS = (*fused.IMPLEMENTATIONS, "compiled")


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, default="tiny")
    parser.add_argument("--model", choices=MODELS, help="default: that of the setting")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=["full", "sparse"])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS,
                        help="between the matrix products; several are measured one after the other; 'compiled' is "
                             "torch.compile of whole blocks; default triton on a GPU, eager elsewhere")
    parser.add_argument("--attention", choices=("fastest", *BACKENDS), default="fastest")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--skiparse-parallel", type=int, help="S; default as large as divides P^2 and --gpus")
    parser.add_argument("--ulysses-parallel", type=int, help="U; default --gpus / S")
    parser.add_argument("--check", action="store_true", help="numerical checks on this device first")
    parser.add_argument("--microbenchmark", action="store_true", help="every step of a block alone")
    parser.add_argument("--profile", action="store_true", help="GPU kernels of one full and one sparse block")
    parser.add_argument("--train-step", action="store_true", help="forward and backward instead of a forward")
    parser.add_argument("--num-layers", type=int, help="of the train step, default half of the model's")
    parser.add_argument("--output", type=Path, help="folder for the JSON, or to plot from")
    parser.add_argument("--plot", type=Path, help="draw the JSON files of --output and measure nothing")
    return parser


def main(argv=None):
    """Returns the exit code: 1 where a check or a measurement failed."""
    args = build_parser().parse_args(argv)
    if args.plot:
        if args.output is None:
            raise SystemExit("--plot needs --output DIR with the JSON files")
        plot(args.output, args.plot)
        return 0
    if args.gpus > 1:
        from tools.torch_reference.launch import launch

        return launch(args)
    return run(args, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def run(args, device, mesh=None):
    """Checks, ceilings and measurements of one process. `mesh` is the process mesh of a multi-GPU run."""
    started = time.perf_counter()
    # Beyond this many shapes torch.compile would silently run eagerly.
    torch._dynamo.config.recompile_limit = 256
    args.kernels = args.kernels or (["triton"] if device.type == "cuda" else ["eager"])
    setting = SETTINGS[args.setting]
    config = MODELS[args.model or setting.model]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    leads = mesh is None or mesh.rank == 0
    result = {"setting": args.setting, "model": args.model or setting.model, "grid": setting.grid, "gpus": args.gpus,
              "machine": _machine(device), "paper": setting.paper.get(args.gpus),
              "release": setting.release if args.gpus == 1 else {}, "measurements": [], "errors": []}
    if leads:
        print(f"{args.setting}: model {result['model']}, grid {setting.grid}, {result['machine']}", flush=True)
    if args.check and leads:
        _guard(result, "check", lambda: _check(result, device, args.kernels))
    if args.microbenchmark and leads:
        print("steps of a block alone", flush=True)
        result["steps"] = _guard(result, "microbenchmark", lambda: microbenchmark(config, setting.grid, device, dtype))
    backends = _backends(args, config, setting.grid, device, dtype, result)
    result["ceilings"] = _guard(result, "ceilings", lambda: _ceilings(config, setting.grid, device, dtype, backends))
    if leads:
        _print_ceilings(result["ceilings"])
    if args.train_step:
        from tools.torch_reference.training_step import measure_training

        _guard(result, "train step", lambda: measure_training(args, config, setting, device, backends, result))
    else:
        measure_modes(args, config, setting, device, dtype, backends, mesh, result)
    if leads:
        print_table(result)
        print(f"whole run {time.perf_counter() - started:.0f} s", flush=True)
        if args.output:
            _write(result, args)
    failed = [row["name"] for row in result.get("checks", []) if not row["passed"]]
    return 1 if result["errors"] or failed else 0


def measure_modes(args, config, setting, device, dtype, backends, mesh, result):
    """Every mode with every choice of kernels; appends to result["measurements"], a failure to result["errors"]."""
    sequence = None
    if mesh is not None:
        from tools.torch_reference.parallel import ParallelSequence

        sequence = ParallelSequence(config.sparse_ratio, config.num_heads, mesh)
    base = random_model(config, device, dtype, sequence=sequence)
    inputs = random_inputs(config, setting.grid, device)
    modes = sorted(args.mode, key=MODES.index)
    for mode in modes:
        for kernels in args.kernels:
            attention = attention_backend(backends["full" if mode == "full" else "sparse"])
            label = f"{mode}, {kernels}"
            row = _guard(result, label, lambda m=mode, k=kernels, a=attention: _measure(
                base, m, k, a, inputs, setting.grid, args, device, result))
            if row is not None:
                result["measurements"].append(row)
            reset_peak_memory(device)


def _measure(base, mode, kernels, attention, inputs, grid, args, device, result):
    model = prepare(base, mode, kernels, attention)

    def forward():
        with torch.inference_mode():
            return model(*inputs)

    begin = time.perf_counter()
    out = forward()
    synchronize(device)
    warm_up = time.perf_counter() - begin
    assert out.isfinite().all(), "the output is not finite"
    reset_peak_memory(device)
    traffic = _Traffic(model.sequence)
    seconds = timed(forward, args.repeats, device, warm_up=0)
    flops = forward_flops(model.config, grid)
    row = {"mode": mode, "kernels": kernels, "seconds": seconds, "median": median(seconds), "warm_up": warm_up,
           "flops": flops, "peak_memory_gib": peak_memory_gib(device), "bytes_sent": traffic.bytes_a_run(args.repeats)}
    if mode == "sparse-8bit":
        from tools.torch_reference.float8 import error_against_bf16

        row["error"] = error_against_bf16(base, model, inputs)
    _print_row(row, result)
    if args.profile and device.type == "cuda" and args.gpus == 1:
        row["profile"] = _guard(result, "profile", lambda: _profile(model, mode, kernels, grid, device))
    return row


def _profile(model, mode, kernels, grid, device):
    """Profiles of a block, printed; the full block's is that of mode full."""
    title = f"{mode}, {kernels}: one {'full' if mode == 'full' else 'sparse'} block"
    summary = profile_block(model, grid, mode != "full", device)
    print_profile(title, summary)
    return summary


class _Traffic:
    """Bytes that the sequence object has sent since this was made; zero on one device."""

    def __init__(self, sequence):
        self.counter = getattr(sequence, "traffic", None)
        self.before = self.counter.sent if self.counter else 0

    def bytes_a_run(self, runs):
        return (self.counter.sent - self.before) // runs if self.counter else 0


def prepare(base, mode, kernels, attention):
    """A model that shares the weights of `base` (8-bit: its own copy of the block linears), ready to run."""
    config = base.config
    model = base.with_layout("full") if mode == "full" else base.with_layout(config.skiparse, config.num_full_blocks)
    model.attention = attention
    model.kernels = fused.kernels("eager" if kernels == "compiled" else kernels)
    if mode == "sparse-8bit":
        from tools.torch_reference.float8 import quantise

        quantise(model)
    if kernels == "compiled":
        for block in model.blocks:
            block.compile(dynamic=False)
    return model


def _guard(result, name, function):
    """`function()`, or None with the error printed and kept: one failed variant does not end the run."""
    try:
        return function()
    except Exception as error:
        traceback.print_exc()
        print(f"FAILED {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        result["errors"].append({"name": name, "error": traceback.format_exc()})
        return None


def _check(result, device, kernels):
    from tools.torch_reference.checks import run_checks

    print("checks", flush=True)
    checks = run_checks(device, tuple(dict.fromkeys(["eager", *(k for k in kernels if k != "compiled")])))
    result["checks"] = checks.rows
    print(f"{len(checks.rows) - len(checks.failed)} of {len(checks.rows)} checks passed", flush=True)


def _backends(args, config, grid, device, dtype, result):
    if args.attention != "fastest":
        return {"full": args.attention, "sparse": args.attention}
    with torch.inference_mode():
        best = _guard(result, "attention", lambda: fastest_attention(config, grid, device, dtype))
    return best or {"full": "default", "sparse": "default"}


def _ceilings(config, grid, device, dtype, backends):
    tokens = grid[0] * grid[1] * grid[2] // config.sparse_ratio**2
    edge = 8192 if device.type == "cuda" else 256
    with torch.inference_mode():
        return ceilings(device, dtype, attention_backend(backends["sparse"]), config.num_heads, config.head_dim,
                        tokens, edge)


def _print_ceilings(measured):
    if measured:
        print(f"ceilings: matmul {measured['matmul'] / 1e12:.1f} TFLOP/s, attention "
              f"{measured['attention'] / 1e12:.1f} TFLOP/s, copy {measured['copy'] / 1e12:.2f} TB/s", flush=True)


def _print_row(row, result):
    spread = (max(row["seconds"]) - min(row["seconds"])) / 2
    rate = row["flops"]["total"] / row["median"] / 1e12
    memory = "" if row["peak_memory_gib"] is None else f", peak {row['peak_memory_gib']:.1f} GiB"
    error = f", error against bf16 {row['error']:.2e}" if "error" in row else ""
    print(f"{row['mode']}, {row['kernels']}: {row['median']:.3f} ± {spread:.3f} s, {rate:.0f} TFLOP/s{memory}, first "
          f"run {row['warm_up']:.1f} s{error}", flush=True)


def _machine(device):
    versions = f"torch {torch.__version__}"
    if device.type != "cuda":
        return f"CPU, {versions}"
    return (f"{torch.cuda.get_device_name(device)}, {versions}, CUDA {torch.version.cuda}, "
            f"cuDNN {torch.backends.cudnn.version()}")


def _write(result, args):
    args.output.mkdir(parents=True, exist_ok=True)
    kind = "train" if args.train_step else "forward"
    path = args.output / f"{args.setting}_{result['model']}_{kind}_{args.gpus}gpu.json"
    with atomic_path(path) as temporary:
        Path(temporary).write_text(json.dumps(result, indent=1))
    print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
