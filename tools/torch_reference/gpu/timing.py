"""Time, memory and rates of device work."""

import time
from functools import partial
from statistics import median

import torch


def synchronize(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def timed(function, repeats, device, warm_up=1):
    """Seconds of every run of `function` after `warm_up` runs: CUDA events on a GPU, the clock elsewhere."""
    for _ in range(warm_up):
        function()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        if torch.device(device).type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
        else:
            begin = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - begin)
    return seconds


def relative_error(actual, expected):
    """||actual - expected|| / ||expected|| in float64."""
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).norm() / expected.norm()).item()


def reset_peak_memory(device):
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_gib(device):
    """Most memory allocated at once since the last reset, GiB; None where the device does not count."""
    if torch.device(device).type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / 2**30


def rate(work, function, device, repeats=10):
    """`work` (operations or bytes) over the median time of `function`, per second."""
    return work / median(timed(function, repeats, device, warm_up=3))


def ceilings(device, dtype, attention, num_heads=40, head_dim=128, tokens=19320, edge=8192):
    """What the machine reaches: {"matmul", "attention"} in FLOP/s of one large call, {"copy"} in bytes/s both ways.

    Operands are random: zeros would run faster than real data.
    """
    def draw(*shape):
        return torch.randn(*shape, device=device, dtype=dtype)

    def copy_rate(source, target):
        return rate(2 * source.nbytes, lambda: target.copy_(source), device)

    matmul = rate(2 * edge**3, partial(torch.matmul, draw(edge, edge), draw(edge, edge)), device)
    copy = copy_rate(draw(16 * edge**2), draw(16 * edge**2))
    shape = (2, tokens, num_heads, head_dim)
    flops = 2 * 4 * tokens**2 * num_heads * head_dim
    return {"matmul": matmul, "copy": copy,
            "attention": rate(flops, partial(attention, draw(*shape), draw(*shape), draw(*shape)), device)}
