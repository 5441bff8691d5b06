"""Time of a whole DiT forward in packed order: full attention, sparse, sparse in 8 bits.

    python -m tools.torch_reference.gpu.benchmark --setting 720p --mode full sparse --repeats 5 --output DIR
    python -m tools.torch_reference.gpu.benchmark --setting 720p --gpus 8 --skiparse-parallel 4 2 1 --output DIR
    python -m tools.torch_reference.gpu.benchmark --setting 480p --video --output DIR
    python -m tools.torch_reference.gpu.benchmark --plot FILE.png --output DIR

Weights are random, created on the GPU; a forward is the whole network (embeddings, every block, head) of one sample.
Prints each measurement as it is made, then a table: median of the repeats and half their spread, arithmetic rate, the
time of the same arithmetic at the ceilings measured in this run, peak memory, speed-up over full and the paper's.
"""

import argparse
import json
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import torch
import torch._dynamo
import torch.distributed as dist

from ospnext_ms.storage.files import atomic_path
from tools.torch_reference.gpu import fused
from tools.torch_reference.gpu.attention_backends import BACKENDS, attention_backend, fa3_module
from tools.torch_reference.gpu.forward import MODES, RESIDUAL, measure_forwards
from tools.torch_reference.gpu.launch import launch
from tools.torch_reference.gpu.microbenchmark import fastest_attention, microbenchmark
from tools.torch_reference.gpu.parallel import EXCHANGES, SWITCH_DTYPE, SWITCH_DTYPES, valid_degrees
from tools.torch_reference.gpu.report import plot, print_table
from tools.torch_reference.gpu.settings import MODELS, SETTINGS
from tools.torch_reference.gpu.timing import ceilings

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
    parser.add_argument("--skiparse-parallel", nargs="+", type=int, help="S of every layout; default all valid ones")
    parser.add_argument("--ulysses-parallel", nargs="+", type=int, help="U of every layout; default --gpus / S")
    parser.add_argument("--exchange", nargs="+", choices=EXCHANGES, default=["overlapped"],
                        help="Ulysses: q, k, v each beside the next projection, or in one call")
    parser.add_argument("--switch-dtype", nargs="+", choices=SWITCH_DTYPES, default=[SWITCH_DTYPE],
                        help="what a switch of SSP sends")
    parser.add_argument("--residual", nargs="+", choices=RESIDUAL, default=["fp32"], help="dtype of the stream")
    parser.add_argument("--keep-bf16", nargs="+", type=int, default=[0], metavar="N",
                        help="8-bit modes: N blocks at either end stay in bf16")
    parser.add_argument("--single-gpu", action="store_true", help="with --gpus also the same on one GPU, for scaling")
    parser.add_argument("--check", action="store_true", help="numerical checks on this device first")
    parser.add_argument("--microbenchmark", action="store_true", help="every step of a block alone")
    parser.add_argument("--profile", action="store_true", help="GPU kernels of one full and one sparse block")
    parser.add_argument("--train-step", action="store_true", help="forward and backward instead of a forward")
    parser.add_argument("--video", action="store_true", help="whole videos instead: all steps and the VAE")
    parser.add_argument("--video-steps", type=int, help="with fewer than 50 the total is worked out for 50")
    parser.add_argument("--video-reused", nargs="+", type=int, default=[0], metavar="N",
                        help="steps that reuse what the blocks added in an earlier one, of all 50 (a step cache)")
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
    if args.video_steps and not args.video:
        raise SystemExit("--video-steps goes with --video")
    if any(args.video_reused) and (args.video_steps or not args.video):
        raise SystemExit("--video-reused goes with --video and all of its steps; leave out --video-steps")
    args.degrees = []
    if args.gpus == 1:
        return run(args, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if args.train_step or args.profile or args.video:
        raise SystemExit("--train-step, --profile and --video measure one GPU; leave out --gpus")
    args.degrees = parallel_degrees(args, MODELS[args.model or SETTINGS[args.setting].model])
    return launch(run, args)


def parallel_degrees(args, config):
    """(S, U) pairs to measure: all that are valid, or those that --skiparse-parallel and --ulysses-parallel name.

    Raises ValueError for one that is not valid or, of two lists, for lists of different lengths.
    """
    valid = valid_degrees(args.gpus, config.sparse_ratio, config.num_heads)
    s, u = args.skiparse_parallel, args.ulysses_parallel
    if s is None and u is None:
        chosen = valid
    elif s is None or u is None:
        chosen = [(args.gpus // n, n) if s is None else (n, args.gpus // n) for n in s or u]
    else:
        chosen = list(zip(s, u, strict=True))
    bad = [pair for pair in chosen if pair not in valid]
    if bad or not chosen:
        raise ValueError(f"skiparse x ulysses parallel {bad or chosen} for {args.gpus} GPUs, {config.num_heads} heads; "
                         f"valid: {valid or 'none'}")
    return chosen


def run(args, device):
    """Checks, ceilings and measurements in this process, which may be one of several; returns the exit code."""
    started = time.perf_counter()
    # Beyond this many shapes torch.compile would silently run eagerly.
    torch._dynamo.config.recompile_limit = 256
    args.kernels = args.kernels or (["triton"] if device.type == "cuda" else ["eager"])
    setting = SETTINGS[args.setting]
    config = MODELS[args.model or setting.model]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    result = {"setting": args.setting, "model": args.model or setting.model, "grid": setting.grid, "gpus": args.gpus,
              "machine": _machine(device), "paper": setting.paper, "release": setting.release, "measurements": [],
              "errors": []}
    guard = partial(_guard, result)
    print(f"{args.setting}: {result['model']}, grid {setting.grid}, {args.gpus} x {result['machine']}", flush=True)
    if args.check:
        guard("check", lambda: _check(result, device, args))
    if args.microbenchmark:
        print("steps of a block alone", flush=True)
        result["steps"] = guard("microbenchmark", lambda: microbenchmark(config, setting.grid, device, dtype))
    backends = _backends(args, config, setting.grid, device, dtype, result)
    result["ceilings"] = guard("ceilings", lambda: _ceilings(config, setting.grid, device, dtype, backends))
    _print_ceilings(result["ceilings"])
    if args.train_step:
        from tools.torch_reference.gpu.training_step import measure_training

        guard("train step", lambda: measure_training(args, config, setting, device, backends, result))
    elif args.video:
        from tools.torch_reference.gpu.video import measure_videos

        guard("videos", lambda: measure_videos(args, config, setting.grid, device, dtype, backends, result, guard))
    else:
        guard("forwards", lambda: measure_forwards(args, config, setting.grid, device, dtype, backends, result, guard))
    if not args.video:
        print_table(result)
    print(f"whole run {time.perf_counter() - started:.0f} s", flush=True)
    if args.output and (not dist.is_initialized() or dist.get_rank() == 0):
        _write(result, args)
    failed = [row["name"] for row in result.get("checks", []) if not row["passed"]]
    return 1 if result["errors"] or failed else 0


def _guard(result, name, function):
    """`function()`, or None with the error printed and kept: one failed variant does not end the run."""
    try:
        return function()
    except Exception as error:
        traceback.print_exc()
        print(f"FAILED {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        result["errors"].append({"name": name, "error": traceback.format_exc()})
        return None


def _check(result, device, args):
    from tools.torch_reference.gpu.checks import run_checks

    print("checks", flush=True)
    kernels = tuple(dict.fromkeys(["eager", *(k for k in args.kernels if k != "compiled")]))
    checks = run_checks(device, kernels, args.degrees, args.exchange)
    result["checks"] = checks.rows
    print(f"{len(checks.rows) - len(checks.failed)} of {len(checks.rows)} checks passed", flush=True)


def _backends(args, config, grid, device, dtype, result):
    kinds = ("full", "sparse", "cross")
    if args.attention != "fastest":
        return dict.fromkeys((*kinds, *(f"{kind}-8bit" for kind in kinds)), args.attention)
    with torch.inference_mode():
        best = _guard(result, "attention", lambda: fastest_attention(
            config, grid, device, dtype, training=args.train_step))
    chosen = [best or dict.fromkeys((*kinds, *(f"{kind}-8bit" for kind in kinds)), "default")]
    if dist.is_initialized():
        dist.broadcast_object_list(chosen)
    return chosen[0]


def _ceilings(config, grid, device, dtype, backends):
    tokens = grid[0] * grid[1] * grid[2] // config.sparse_ratio**2
    edge = 8192 if device.type == "cuda" else 256
    eight_bit = attention_backend(backends["sparse-8bit"]) if device.type == "cuda" and fa3_module() else None
    with torch.inference_mode():
        return ceilings(device, dtype, attention_backend(backends["sparse"]), eight_bit, config.num_heads,
                        config.head_dim, tokens, edge)


def _print_ceilings(measured):
    if not measured:
        return
    print(f"ceilings: copy {measured['copy'] / 1e12:.2f} TB/s", end="")
    for name, sustained in measured["sustained"].items():
        print(f", {name} {measured[name] / 1e12:.1f} TFLOP/s (sustained {sustained / 1e12:.1f})", end="")
    print(flush=True)


def _machine(device):
    versions = f"torch {torch.__version__}"
    if device.type != "cuda":
        return f"CPU, {versions}"
    return (f"{torch.cuda.get_device_name(device)}, {versions}, CUDA {torch.version.cuda}, "
            f"cuDNN {torch.backends.cudnn.version()}")


def _write(result, args):
    args.output.mkdir(parents=True, exist_ok=True)
    kind = "train" if args.train_step else "video" if args.video else "forward"
    path = args.output / f"{args.setting}_{result['model']}_{kind}_{args.gpus}gpu.json"
    with atomic_path(path) as temporary:
        Path(temporary).write_text(json.dumps(result, indent=1))
    print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
