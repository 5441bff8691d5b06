"""Throughput of HiF8 rounding beside a copy of the same array. CPU; from the repository's root:

    python -m tools.experiments.benchmark_hif8 --megabytes 64 --repeats 20

Each figure is the best of the repeats, in GB of fp32 input a second, and as a multiple of the time of the copy.
"""

import argparse
import time

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ospnext_ms import hif8_format as hif8
from ospnext_ms.kernels.hif8_operators import Quantize, RoundByArithmetic, Scale
from ospnext_ms.quant.hif8 import encode, quantize_dequantize
from ospnext_ms.reporting.clock import STEPS_OF_TRIALS


class _AddOne(ms.nn.Cell):
    def construct(self, x):
        return x + 1.0


def best_seconds(function, repeats):
    """Shortest time of a call, the first ones left out: MindSpore compiles and tries numbers of threads in them."""
    for _ in range(STEPS_OF_TRIALS):
        function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def cases(x):
    """{name: function} on the array x."""
    tensor, one = Tensor(x), Tensor([1.0], ms.float32)
    add, scale = ms.jit(_AddOne()), Scale(15.0)
    rounding, arithmetic = ms.jit(Quantize(False, ms.float32)), ms.jit(RoundByArithmetic(15.0))
    scaled = tensor / tensor.abs().max() * 15
    return {
        "copy, NumPy": lambda: x.copy(),
        "rounding alone, NumPy": lambda: hif8.round_nearest(x),
        "quantize_dequantize, NumPy": lambda: quantize_dequantize(x, 15.0),
        "encode, NumPy": lambda: encode(x),
        "x + 1, MindSpore": lambda: add(tensor).asnumpy(),
        "scale, MindSpore": lambda: scale(tensor).asnumpy(),
        "rounding alone, MindSpore": lambda: rounding(tensor, one).asnumpy(),
        "quantize_dequantize, MindSpore": lambda: quantize_dequantize(tensor, 15.0).asnumpy(),
        "rounding by arithmetic, MindSpore": lambda: arithmetic(scaled).asnumpy(),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=64, help="size of the fp32 array")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args(argv)
    x = np.random.default_rng(0).standard_normal((arguments.megabytes * 256, 1024), np.float32)
    copy = {}
    for name, function in cases(x).items():
        seconds = best_seconds(function, arguments.repeats)
        framework = name.rsplit(", ", 1)[1]
        copy.setdefault(framework, seconds)
        print(f"{name:36}{x.nbytes / seconds / 1e9:8.2f} GB/s{seconds / copy[framework]:8.1f} x "
              f"{'copy' if framework == 'NumPy' else 'x + 1'}", flush=True)


if __name__ == "__main__":
    main()
