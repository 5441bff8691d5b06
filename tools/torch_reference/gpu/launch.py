"""The benchmark on several GPUs: one process each, NCCL between them (gloo processes where there is no GPU)."""

import os
import sys
import tempfile
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

# A process that failed alone leaves the others waiting in a collective; after this time they give up.
TIMEOUT = timedelta(minutes=4)


def join_processes(rank, size, store):
    """Makes this process rank `rank` of `size`, that meet through the file `store`; returns its device."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", init_method=f"file://{store}", rank=rank, world_size=size,
                            timeout=TIMEOUT, device_id=device if on_gpu else None)
    return device


def launch(run, args):
    """`run(args, device)` in args.gpus processes; the exit code of the first. ValueError: more GPUs than there are."""
    if torch.cuda.is_available() and args.gpus > torch.cuda.device_count():
        raise ValueError(f"--gpus is {args.gpus}; this machine has {torch.cuda.device_count()}")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_work, (run, args, folder), nprocs=args.gpus)
        return int((Path(folder) / "exit_code").read_text())


def _work(rank, run, args, folder):
    """One process: only the first prints."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if rank == 0 else nowhere):
        if not torch.cuda.is_available():
            torch.set_num_threads(max(1, os.cpu_count() // args.gpus))
        device = join_processes(rank, args.gpus, Path(folder) / "store")
        code = run(args, device)
        if rank == 0:
            (Path(folder) / "exit_code").write_text(str(code))
        dist.barrier()
        dist.destroy_process_group()
