"""One of several processes that run the cases of their world size: python -m tests.distributed.worker FOLDER SPEED
PART ..., the parts being those of cases.PARTS.

FOLDER holds what one process computes, with the same weights (see `write_expected`), and the configurations of the
training runs; what is found, and how far the processes are from one, is written to FOLDER/rank_N.json.
"""

import faulthandler
import json
import math
import sys
import time
from functools import partial
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from ospnext_ms.config.generate import GenerateConfig, GenerateParallelSection
from ospnext_ms.config.reader import load_config
from ospnext_ms.config.sections import ParallelSection
from ospnext_ms.generation.jobs import plain_jobs
from ospnext_ms.generation.team import make_team
from ospnext_ms.generation.text_to_video import TextToVideo
from ospnext_ms.kernels.attention import Attention
from ospnext_ms.kernels.collectives import AllReduceSum
from ospnext_ms.models.dit import OSPNextDiT
from ospnext_ms.models.sequence import PackedSequence
from ospnext_ms.parallel.degrees import world_size
from ospnext_ms.parallel.gradients import GradientReducer
from ospnext_ms.parallel.mesh import make_mesh, start_processes
from ospnext_ms.parallel.sharding import ShardedWeights
from ospnext_ms.parallel.ssp import ParallelSequence
from ospnext_ms.runtime import start
from tests.distributed.cases import EXCHANGES, GENERATION, GRIDS, HIF8, TRAINING, UNEVEN, cases
from tests.distributed.hif8 import compare_scopes
from tests.distributed.network import CONFIG, Loss, inputs
from tests.distributed.train import train
from tests.support.compare import relative_error
from tests.support.msrun import TIMEOUT_SECONDS
from tests.support.shards import whole as assembled
from tests.support.weights import random_weights


def forward_and_gradients(net, arguments, compiled):
    """(output, gradients of the trainable parameters)."""
    value_and_grad = ms.value_and_grad(Loss(net), None, net.trainable_params(), has_aux=True)
    (_, out), gradients = (ms.jit(value_and_grad) if compiled else value_and_grad)(*arguments)
    return out, gradients


def names_of(net):
    """Names of the trainable parameters before anything wraps the network, in order."""
    return [parameter.name for parameter in net.trainable_params()]


def write_expected(folder):
    """Writes what one process computes: output and gradients for every grid, and the latents of generate.yaml."""
    for grid, batch in [(grid, 1) for grid in GRIDS] + [(UNEVEN, 2)]:
        net = OSPNextDiT(CONFIG)
        random_weights(net)
        names = names_of(net)
        out, gradients = forward_and_gradients(net, inputs(grid, batch), False)
        expected = {name: gradient.asnumpy() for name, gradient in zip(names, gradients, strict=True)}
        np.savez(expected_file(folder, grid, batch), out=out.asnumpy(), **expected)
    config = load_config(GenerateConfig, Path(folder) / "generate.yaml")
    alone = TextToVideo(config, start(config.context), plain_jobs(config.sampling, [config.prompts.prompt]))
    np.save(Path(folder) / "latents.npy", next(alone.latents())[1])


def expected_file(folder, grid, batch):
    """Where write_expected puts the numbers of a grid."""
    return Path(folder) / f"expected_{'x'.join(map(str, grid))}_{batch}.npz"


def run(folder, case):
    """Runs a case on all processes together; what it found, as JSON values."""
    skiparse, ulysses = map(int, case.degrees.split("x"))
    mesh = make_mesh(ParallelSection(skiparse_parallel=skiparse, ulysses_parallel=ulysses, parameter_shard=case.shard))
    net = OSPNextDiT(CONFIG, sequence=ParallelSequence(CONFIG.sparse_ratio, CONFIG.num_heads, mesh))
    random_weights(net)
    whole = {name: parameter.asnumpy() for name, parameter in net.parameters_and_names()}
    sharded = ShardedWeights(net, mesh)
    names, parameters = names_of(net), net.trainable_params()
    if case.recompute:
        for block in net.blocks:
            block.recompute()
    arguments = inputs(case.grid, case.batch)
    out, gradients = forward_and_gradients(net, arguments, case.compiled)
    out = out.asnumpy().copy()
    traffic = {"bytes": dict(mesh.traffic.bytes), "calls": dict(mesh.traffic.calls)}
    gradients = list(gradients)
    GradientReducer(parameters, mesh, sharded)(gradients)
    with np.load(expected_file(folder, case.grid, case.batch)) as archive:
        expected = dict(archive)
    expected_out = expected.pop("out")
    return {
        "forward": float(np.linalg.norm(out - expected_out) / np.linalg.norm(expected_out)),
        "gradients": gradient_errors(sharded, names, gradients, expected),
        "norms": norm_error(sharded, parameters, gradients, expected),
        "weights_equal": all(np.array_equal(assembled(sharded, n, p), whole[n])
                             for n, p in zip(names, parameters, strict=True)),
        "held": sum(p.size for p in parameters) / sum(a.size for a in whole.values()),
        "traffic": traffic,
    }


def gradient_errors(sharded, names, gradients, expected):
    """{name: largest |actual - expected| / (1e-6 + 1e-4 |expected|)}; at most 1 is right."""
    errors = {}
    for name, gradient in zip(names, gradients, strict=True):
        wanted, actual = expected[name], assembled(sharded, name, gradient)
        assert actual.shape == wanted.shape, name
        errors[name] = float((np.abs(actual - wanted) / (1e-6 + 1e-4 * np.abs(wanted))).max())
    return errors


def norm_error(sharded, parameters, gradients, expected):
    """Relative error of the gradient's squared norm, added up over shards."""
    squares = [np.square(gradient.asnumpy().astype(np.float64)).sum() for gradient in gradients]
    total = sharded.total_squares(parameters, squares).sum()
    wanted = sum(np.square(gradient.astype(np.float64)).sum() for gradient in expected.values())
    return float(abs(total - wanted) / wanted)


class Chain(nn.Cell):
    """Everything a sequence can do, once: a full block, a switch, a sparse block."""

    def __init__(self, sequence, grid):
        super().__init__()
        self.sequence = sequence
        self.attention = Attention("blockwise")
        self.grid = grid

    def construct(self, x_BNC, weight_BNC):
        x = self.sequence.enter(x_BNC, self.grid)
        heads = (1, x.shape[1], CONFIG.num_heads, CONFIG.head_dim)
        x = x.reshape(heads)
        x = x + self.sequence.attend_full(self.attention, x, 2.0 * x, 3.0 * x, self.grid, "token")
        x = self.sequence.switch(x.reshape(1, -1, CONFIG.dim), self.grid, "group")
        heads = (1, x.shape[1], CONFIG.num_heads, CONFIG.head_dim)
        x = x.reshape(heads)
        x = x + self.sequence.attend_sparse(self.attention, x, 2.0 * x, 3.0 * x, self.grid, "group")
        out = self.sequence.leave(x.reshape(1, -1, CONFIG.dim), self.grid, "group")
        return (out * weight_BNC).mean(), out


def compare_exchanges(degrees, grid):
    """Compiled exchanges and their gradients against one process, and with a switch in fp16; relative errors."""
    skiparse, ulysses = map(int, degrees.split("x"))
    mesh = make_mesh(ParallelSection(skiparse_parallel=skiparse, ulysses_parallel=ulysses))
    rng = np.random.default_rng(3)
    x, weight = (Tensor(rng.normal(size=(1, math.prod(grid), CONFIG.dim)).astype(np.float32)) for _ in range(2))
    together = Chain(ParallelSequence(CONFIG.sparse_ratio, CONFIG.num_heads, mesh), grid)
    (_, out), gradient = ms.jit(ms.value_and_grad(together, 0, None, has_aux=True))(x, weight)
    gradient = AllReduceSum(mesh.world_group)(gradient)
    (_, expected_out), expected = ms.value_and_grad(Chain(PackedSequence(CONFIG.sparse_ratio), grid), 0, None,
                                                    has_aux=True)(x, weight)
    rounding = Chain(ParallelSequence(CONFIG.sparse_ratio, CONFIG.num_heads, mesh, ms.float16), grid)
    rounded_out = rounding(x, weight)[1]
    return {"forward": relative_error(out.asnumpy(), expected_out.asnumpy()),
            "gradient": relative_error(gradient.asnumpy(), expected.asnumpy()),
            "switch in fp16": relative_error(rounded_out.asnumpy(), expected_out.asnumpy())}


def compare_latents(folder, degrees, split):
    """Final latents of a pipeline whose video several processes share, against one process; the relative error."""
    config = load_config(GenerateConfig, Path(folder) / "generate.yaml")
    skiparse, ulysses = map(int, degrees.split("x"))
    section = GenerateParallelSection(skiparse_parallel=skiparse, ulysses_parallel=ulysses, split_guidance=split)
    runtime = start(config.context)
    jobs = plain_jobs(config.sampling, [config.prompts.prompt])
    pipeline = TextToVideo(config, runtime, jobs, None, make_team(section, make_mesh(section)))
    return relative_error(next(pipeline.latents())[1], np.load(Path(folder) / "latents.npy"))


def jobs_of(part, folder, world, speed):
    """{name: function} of a part's cases."""
    if part == "hif8":
        return {f"hif8-{degrees}": partial(compare_scopes, degrees) for degrees in HIF8[world, speed]}
    if part == "train":
        return {name: partial(train, folder, name) for name in TRAINING[world, speed]}
    jobs = {case.name: partial(run, folder, case) for case in cases(world, speed)}
    jobs |= {f"exchanges-{degrees}-grid{grid[1]}": partial(compare_exchanges, degrees, grid)
             for degrees, grid in EXCHANGES[world, speed]}
    return jobs | {f"latents-{degrees}-{split}": partial(compare_latents, folder, degrees, split)
                   for degrees, split in GENERATION[world, speed]}


def main(folder, speed, *parts):
    """Joins the processes, runs the "quick" or the "slow" cases of the parts and writes the results."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    # Errors come up where they are made, and on busy cores a step costs a quarter of the time.
    ms.runtime.launch_blocking()
    # A process that waits for another one forever says where.
    faulthandler.dump_traceback_later(TIMEOUT_SECONDS - 30)
    mesh = start_processes(ParallelSection())
    results = {"seconds": {}}
    jobs = [job for part in parts for job in jobs_of(part, folder, world_size(), speed).items()]
    for name, job in jobs:
        start_time = time.perf_counter()
        results[name] = job()
        results["seconds"][name] = round(time.perf_counter() - start_time, 1)
        Path(folder, f"rank_{mesh.rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
