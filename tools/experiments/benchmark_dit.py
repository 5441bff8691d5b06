"""Time of a DiT forward, full against sparse, MindSpore and torch_reference on the same cores in one run.

    python -m tools.experiments.benchmark_dit --grid 5 32 32 --repeats 5 [--output FILE.json]

The two models of a framework run alternately, so that a noisy machine troubles both alike. Prints medians, the spread
of the repeats, the measured ratio of full to sparse and the ratio that the FLOP count predicts.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from ospnext_ms.models.config import DiTConfig
from ospnext_ms.models.flops import forward_flops
from ospnext_ms.reporting.clock import STEPS_OF_TRIALS
from ospnext_ms.storage.files import atomic_path

SPARSE = DiTConfig(dim=256, ffn_dim=1024, num_heads=4, num_layers=8, freq_dim=256, text_dim=64, text_len=64,
                   skiparse="dual_end", num_full_blocks=4)
FULL = replace(SPARSE, skiparse="full", num_full_blocks=None)
CONFIGS = {"full": FULL, "sparse": SPARSE}


def inputs(config, grid, seed=0):
    """Random (latent, timestep, text) as NumPy fp32, batch 1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1, config.in_channels, grid[0], 2 * grid[1], 2 * grid[2])).astype(np.float32)
    text = rng.normal(size=(1, config.text_len, config.text_dim)).astype(np.float32)
    return x, np.array([500.0], np.float32), text


def mindspore_forwards(grid):
    """{"full", "sparse": callable that runs one compiled forward and waits for it}."""
    import mindspore as ms

    from ospnext_ms.models.dit import OSPNextDiT

    def forward(config):
        net = ms.jit(OSPNextDiT(config))
        tensors = [ms.Tensor(a) for a in inputs(config, grid)]
        return lambda: net(*tensors).asnumpy()

    return {name: forward(config) for name, config in CONFIGS.items()}


def torch_forwards(grid):
    """The same with torch_reference, eager."""
    import torch

    from tools.torch_reference.dit import OSPNextDiT

    def forward(config):
        net = OSPNextDiT(config).eval()
        tensors = [torch.from_numpy(a) for a in inputs(config, grid)]
        return lambda: torch.no_grad()(net)(*tensors).numpy()

    return {name: forward(config) for name, config in CONFIGS.items()}


def alternate(forwards, repeats, unmeasured):
    """Seconds of every repeat after `unmeasured` calls of each: {name: [float]}."""
    for _ in range(unmeasured):
        for forward in forwards.values():
            forward()
    seconds = {name: [] for name in forwards}
    for _ in range(repeats):
        for name, forward in forwards.items():
            start = time.perf_counter()
            forward()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main():
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, nargs=3, default=(5, 32, 32), metavar=("T", "H", "W"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    grid = tuple(args.grid)
    flops = {name: forward_flops(config, grid)["total"] for name, config in CONFIGS.items()}
    predicted = flops["full"] / flops["sparse"]
    result = {"grid": grid, "flops": flops, "flop_ratio": predicted}
    print(f"grid {grid}, {np.prod(grid)} tokens, FLOP ratio full / sparse {predicted:.2f}")
    print(f"{'framework':<16}{'full s':>18}{'sparse s':>18}{'ratio':>8}{'of FLOP ratio':>16}{'GFLOP/s full':>14}")
    for framework, forwards, unmeasured in (("MindSpore", mindspore_forwards, STEPS_OF_TRIALS),
                                            ("torch_reference", torch_forwards, 1)):
        seconds = alternate(forwards(grid), args.repeats, unmeasured)
        median = {name: float(np.median(values)) for name, values in seconds.items()}
        ratio = median["full"] / median["sparse"]
        columns = "".join(
            f"{median[name]:>9.2f} ±{(max(values) - min(values)) / 2:>5.2f}  " for name, values in seconds.items()
        )
        speed = flops["full"] / median["full"] / 1e9
        print(f"{framework:<16}{columns}{ratio:>8.2f}{ratio / predicted:>15.0%}{speed:>14.1f}")
        result[framework] = {"seconds": seconds, "ratio": ratio}
    if args.output:
        with atomic_path(args.output) as path:
            Path(path).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
