"""What every process of test_parallel.py runs: a table of cases on gloo; the first process writes what it measured."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from ospnext_ms.models.config import DiTConfig
from tests.support.compare import relative_error
from tools.torch_reference.gpu.fused import EagerKernels
from tools.torch_reference.gpu.launch import join_processes
from tools.torch_reference.gpu.parallel import ParallelSequence, create_mesh
from tools.torch_reference.gpu.sequence import PackedSequence
from tools.torch_reference.gpu.settings import random_inputs, random_model

CONFIG = DiTConfig(dim=48, ffn_dim=64, num_heads=8, num_layers=8, num_full_blocks=4, freq_dim=16, text_dim=8,
                   text_len=4)
# 40 heads as in the 14B model, so five on each of 8 processes; six channels a head are the fewest with all three axes.
FORTY_HEADS = replace(CONFIG, dim=240, num_heads=40, num_layers=4, num_full_blocks=0)
CONFIGS = {"eight heads": CONFIG, "forty heads": FORTY_HEADS, "full": replace(CONFIG, skiparse="full", num_layers=2,
                                                                              num_full_blocks=None)}


@dataclass(frozen=True)
class Case:
    """One comparison with a single process. Gradients too, or the output alone."""

    degrees: tuple
    grid: tuple
    config: str = "eight heads"
    exchange: str = "overlapped"
    with_gradients: bool = True
    batch: int = 1
    switch_dtype: str = "stream"


def work(rank, cases, folder):
    """Runs `cases`; process 0 writes results.json: one dict a case."""
    torch.set_num_threads(1)
    size = cases[0].degrees[0] * cases[0].degrees[1]
    join_processes(rank, size, Path(folder) / "store")
    meshes = {degrees: create_mesh(*degrees, "cpu") for degrees in dict.fromkeys(case.degrees for case in cases)}
    results = [dict(asdict(case), **_compare(case, meshes[case.degrees])) for case in cases]
    if rank == 0:
        (Path(folder) / "results.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def _compare(case, mesh):
    config = CONFIGS[case.config]
    sequence = ParallelSequence(config.sparse_ratio, config.num_heads, mesh, case.exchange, case.switch_dtype)
    shared = random_model(config, "cpu", torch.float32, sequence=sequence)
    alone = random_model(config, "cpu", torch.float32)
    inputs = random_inputs(config, case.grid, "cpu", case.batch)
    with torch.inference_mode():
        out = shared(*inputs)
        traffic = _sum_over_processes(sequence.traffic.by_kind)
        result = {"out": _worst(relative_error(out, alone(*inputs))), "traffic": traffic}
    if case.with_gradients:
        result["gradients"] = _gradient_errors(shared, alone, inputs)
    return result


def _gradient_errors(shared, alone, inputs):
    """{parameter: error of the gradient summed over processes}; the input's gradient is "x"."""
    gradients = []
    for model in (shared, alone):
        x = inputs[0].clone().requires_grad_()
        model.requires_grad_(True)
        out = model(x, *inputs[1:])
        (out * torch.sin(torch.arange(out.numel()).view(out.shape))).mean().backward()
        gradients.append({"x": x.grad, **{name: parameter.grad for name, parameter in model.named_parameters()}})
    errors = {}
    for name, expected in gradients[1].items():
        # A process without tokens has no gradient at all.
        total = torch.zeros_like(expected) if gradients[0][name] is None else gradients[0][name]
        dist.all_reduce(total)
        errors[name] = relative_error(total, expected)
    return errors


def _worst(number):
    worst = torch.tensor(number)
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    return worst.item()


def _sum_over_processes(by_kind):
    numbers = torch.tensor([by_kind[kind] for kind in ("switch", "ulysses", "leave")])
    dist.all_reduce(numbers)
    return dict(zip(("switch", "ulysses", "leave"), numbers.tolist(), strict=True))


def _switched(sequence, x, grid, target):
    x, owed, gather = sequence.switch(x, None, EagerKernels(), grid, target)
    assert owed is None
    return x if gather is None else x.index_select(1, gather)


def exchange_real_grid(rank, degrees, grid, folder):
    """Enter, switch to group, back, leave on a grid of real size, bit for bit; writes results.json."""
    torch.set_num_threads(1)
    join_processes(rank, degrees[0][0] * degrees[0][1], Path(folder) / "store")
    x = torch.arange(grid[0] * grid[1] * grid[2]).view(1, -1, 1)
    results = []
    for pair in degrees:
        sequence = ParallelSequence(2, 40, create_mesh(*pair, "cpu"), switch_dtype="stream")
        natural = PackedSequence(2).leave(PackedSequence(2).enter(x, grid), grid, "token")
        shard = sequence.enter(x, grid)
        group = _switched(sequence, shard, grid, "group")
        equal = [torch.equal(natural, x), torch.equal(sequence.leave(shard, grid, "token"), x),
                 torch.equal(sequence.leave(group, grid, "group"), x),
                 torch.equal(_switched(sequence, group, grid, "token"), shard)]
        tokens = torch.tensor([shard.shape[1], group.shape[1], int(all(equal))])
        everywhere = [torch.empty_like(tokens) for _ in range(dist.get_world_size())]
        dist.all_gather(everywhere, tokens)
        results.append({"degrees": pair, "processes": [shard.tolist() for shard in everywhere]})
    if rank == 0:
        (Path(folder) / "results.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()
