"""Time of one training step without the optimiser: forward, recomputation of every block, backward; full and sparse."""

import time
from dataclasses import replace
from statistics import median

import torch
import torch.nn.functional as F

from ospnext_ms.models.flops import forward_flops
from tools.torch_reference.gpu import fused
from tools.torch_reference.gpu.attention_backends import attention_backend
from tools.torch_reference.gpu.settings import random_inputs, random_model
from tools.torch_reference.gpu.timing import peak_memory_gib, reset_peak_memory, synchronize, timed

# Forward, the same again in the backward pass of a recomputed block, and twice its arithmetic for the gradients.
PASSES = 4


def training_config(config, num_layers=None):
    """`config` with fewer layers and full blocks in the same proportion, default half of both.

    Raises ValueError where the number of full blocks is not whole (DiTConfig says which are valid).
    """
    num_layers = num_layers or config.num_layers // 2
    full_blocks, rest = divmod(config.num_full_blocks * num_layers, config.num_layers)
    if rest:
        raise ValueError(f"{num_layers} layers cannot keep {config.num_full_blocks} full blocks of {config.num_layers}")
    return replace(config, num_layers=num_layers, num_full_blocks=full_blocks)


def measure_training(args, config, setting, device, backends, result):
    """Appends one row a mode to result["measurements"]; blocks go through torch.compile on a GPU."""
    config = training_config(config, args.num_layers)
    result["train_layers"] = config.num_layers
    print(f"training step of {config.num_layers} layers, {config.num_full_blocks} of them full in the sparse model, "
          "every block recomputed, no optimiser", flush=True)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    base = random_model(config, device, dtype).requires_grad_(True)
    x, t, text = random_inputs(config, setting.grid, device)
    target = torch.randn_like(x)
    for mode in sorted(set(args.mode) & {"full", "sparse"}):
        model = base.with_layout("full") if mode == "full" else base
        model.attention = attention_backend(backends[mode])
        model.kernels = fused.EagerKernels()
        model.gradient_checkpointing = True
        if device.type == "cuda":
            for block in model.blocks:
                block.compile(dynamic=False)

        def step(model=model):
            for parameter in base.parameters():
                parameter.grad = None
            loss = F.mse_loss(model(x, t, text), target)
            loss.backward()
            return loss

        result["measurements"].append(_measure(step, base, mode, model.config, setting.grid, args.repeats, device))


def _measure(step, base, mode, config, grid, repeats, device):
    begin = time.perf_counter()
    loss = step()
    synchronize(device)
    warm_up = time.perf_counter() - begin
    assert loss.isfinite(), f"loss is {loss.item()}"
    assert all(p.grad is not None and p.grad.isfinite().all() for p in base.parameters()), "a gradient is missing"
    reset_peak_memory(device)
    seconds = timed(step, repeats, device, warm_up=0)
    row = {"mode": mode, "kernels": "compiled" if device.type == "cuda" else "eager", "seconds": seconds,
           "median": median(seconds), "warm_up": warm_up, "flops": forward_flops(config, grid), "passes": PASSES,
           "peak_memory_gib": peak_memory_gib(device), "bytes_sent": 0}
    print(f"{mode}: {row['median']:.3f} s a step, first {warm_up:.1f} s", flush=True)
    return row
