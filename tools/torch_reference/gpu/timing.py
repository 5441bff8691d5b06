"""Time, memory and rates of device work."""

import time
from functools import partial
from statistics import median

import torch

SUSTAINED_SECONDS = 0.6


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


def sustained_rate(work, function, device, seconds=SUSTAINED_SECONDS):
    """`rate` over `seconds` of calls back to back, after half as long: at the clock that the card holds then."""
    once = median(timed(function, 2, device))
    calls = max(1, round(seconds / once))

    def many():
        for _ in range(calls):
            function()

    for _ in range(calls // 2):
        function()
    return work * calls / timed(many, 1, device, warm_up=0)[0]


def ceilings(device, dtype, attention, attention_float8=None, num_heads=40, head_dim=128, tokens=19320, edge=8192):
    """What the machine reaches on operands drawn at random (zeros would run faster): a dict of FLOP/s and bytes/s.

    "matmul" and "attention" of one large call, "matmul_8bit" and "attention_8bit" of the same on e4m3 codes where the
    device multiplies them, "copy" in bytes/s both ways: medians of single calls. "sustained": the same, but the copy,
    over SUSTAINED_SECONDS, as a card that heats up lowers its clock. `attention_float8`: backend for codes, or None.
    """
    def draw(*shape):
        return torch.randn(*shape, device=device, dtype=dtype)

    def copy_rate(source, target):
        return rate(2 * source.nbytes, lambda: target.copy_(source), device)

    result = {"copy": copy_rate(draw(16 * edge**2), draw(16 * edge**2)), "sustained": {}}
    shape = (4, tokens, num_heads, head_dim)
    a, b, q, k, v = draw(edge, edge), draw(edge, edge), draw(*shape), draw(*shape), draw(*shape)
    products = 2 * edge**3, 4 * 4 * tokens**2 * num_heads * head_dim
    calls = {"matmul": (products[0], partial(torch.matmul, a, b)),
             "attention": (products[1], partial(attention, q, k, v))}
    if attention_float8 is not None:
        one = torch.ones((), device=device)
        a8, b8, q8, k8, v8 = (x.to(torch.float8_e4m3fn) for x in (a, b, q, k, v))
        calls["matmul_8bit"] = products[0], partial(torch._scaled_mm, a8, b8.t(), one, one, out_dtype=dtype,
                                                    use_fast_accum=True)
        eight_bit = attention_float8.scaled((one.expand(num_heads),) * 3)
        calls["attention_8bit"] = products[1], partial(eight_bit, q8, k8, v8)
    for name, (work, function) in calls.items():
        result[name] = rate(work, function, device)
        result["sustained"][name] = sustained_rate(work, function, device)
    return result
