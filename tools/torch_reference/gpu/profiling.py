"""Where the time of one block goes: GPU kernels by name and by kind."""

from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity, profile

from tools.torch_reference.gpu.timing import synchronize

_KINDS = (
    ("attention", ("sdpa", "fmha", "flashattn", "flash::", "attention")),
    ("communication", ("nccl",)),
    ("matmul", ("gemm", "nvjet", "cutlass", "xmma", "cublas", "mm_")),
    ("copy", ("memcpy", "catarray", "copy", "index", "gather")),
)


def kind_of(kernel_name):
    """Kind of a GPU kernel by its name: attention, communication, matmul, copy or elementwise."""
    lowered = kernel_name.lower()
    for kind, parts in _KINDS:
        if any(part in lowered for part in parts):
            return kind
    return "elementwise"


def profile_block(model, grid, sparse, device, top=14):
    """Profiles one block after two warm-up runs; returns {"milliseconds", "kinds": {kind: ms}, "kernels": [...]}."""
    config = model.config
    patterns = config.block_patterns
    index = next(i for i, pattern in enumerate(patterns) if (pattern != "full") == sparse)
    with torch.inference_mode():
        execution = model.executions()[index]
    order = model.sequence.order(grid, "token", config.head_dim, torch.device(device))
    tokens = order.cos_Nd.shape[0]
    generator = torch.Generator(device=device).manual_seed(0)

    def draw(*shape, dtype):
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    e0_B6C = draw(1, 6, config.dim, dtype=torch.float32)
    text = execution.kernels.input_of_linear(draw(1, config.text_len, config.dim, dtype=model.dtype))

    here = torch.empty(0, device=device)
    gather = model.sequence.switch(here, "owed", None, grid, "token")[2] if sparse else None

    def run(owed):
        """What the block leaves, as it takes it from the one before."""
        x_BNC = draw(1, tokens, config.dim, dtype=model.residual_dtype)
        owed = model.blocks[index](x_BNC, owed, gather, e0_B6C, text, order, sparse, execution)[1]
        synchronize(device)
        return owed

    with torch.inference_mode():
        owed = run(run(None))
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            run(owed)
    return _summary(profiler, top)


def _is_kernel_of_the_block(event):
    """A GPU kernel, and neither the drawing of the inputs nor a span that torch.compile annotates."""
    on_gpu = event.self_device_time_total > 0 and event.device_type != torch.autograd.DeviceType.CPU
    return on_gpu and not any(part in event.key for part in ("distribution", "##", "Torch-Compiled"))


def _summary(profiler, top):
    events = [event for event in profiler.key_averages() if _is_kernel_of_the_block(event)]
    kinds = defaultdict(float)
    for event in events:
        kinds[kind_of(event.key)] += event.self_device_time_total / 1e3
    events.sort(key=lambda event: -event.self_device_time_total)
    kernels = [{"name": event.key, "calls": event.count, "milliseconds": event.self_device_time_total / 1e3}
               for event in events[:top]]
    return {"milliseconds": sum(kinds.values()), "kinds": dict(kinds), "kernels": kernels}


def print_profile(title, summary):
    """One line a kernel, longest first."""
    total = summary["milliseconds"]
    kinds = ", ".join(f"{kind} {ms:.1f}" for kind, ms in sorted(summary["kinds"].items(), key=lambda item: -item[1]))
    print(f"\n{title}: {total:.1f} ms on the GPU ({kinds})")
    for row in summary["kernels"]:
        share = row["milliseconds"] / total
        print(f"  {row['milliseconds']:9.3f} ms {share:6.1%} {row['calls']:4d} x  {row['name'][:90]}", flush=True)
