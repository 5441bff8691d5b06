"""SSP and Ulysses on real processes (gloo) against one process: outputs, every gradient, bytes sent."""

import json
import math

import pytest

torch = pytest.importorskip("torch", reason="the reference networks need PyTorch")

from torch.multiprocessing import get_context, start_processes  # noqa: E402

from ospnext_ms.skiparse import SkiparsePlan  # noqa: E402
from tests.tools.torch_reference.gpu import parallel_worker  # noqa: E402
from tests.tools.torch_reference.gpu.parallel_worker import CONFIGS, Case  # noqa: E402
from tools.torch_reference.gpu.parallel import Mesh, ParallelSequence, valid_degrees  # noqa: E402

EVEN, ODD, TINY = (2, 8, 8), (3, 5, 7), (1, 1, 2)
CASES = {
    2: [Case((2, 1), EVEN), Case((2, 1), ODD, batch=2), Case((1, 2), ODD)],
    4: [Case((4, 1), EVEN), Case((2, 2), ODD, exchange="fused")],
    8: [Case((4, 2), EVEN), Case((4, 2), ODD)],
}
MORE_CASES = {
    2: [Case((2, 1), TINY), Case((1, 2), EVEN, exchange="fused"), Case((1, 2), ODD, exchange="fused", batch=2),
        Case((1, 2), EVEN, config="full"), Case((2, 1), EVEN, config="full", exchange="fused", with_gradients=False)],
    4: [Case((4, 1), ODD), Case((2, 2), EVEN, batch=2), Case((1, 4), ODD), Case((2, 2), TINY),
        Case((4, 1), (1, 5, 3), exchange="fused", with_gradients=False)],
    8: [Case((4, 2), ODD, exchange="fused"), Case((2, 4), ODD),
        Case((4, 2), (1, 45, 80), config="forty heads", with_gradients=False),
        Case((1, 8), EVEN, config="forty heads", with_gradients=False)],
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Runs a worker function in several processes; forked from a server that has imported everything once."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.tools.torch_reference.gpu.parallel_worker"])

    def run(function, size, *arguments):
        folder = str(tmp_path_factory.mktemp("processes"))
        start_processes(function, (*arguments, folder), size, start_method="forkserver")
        with open(f"{folder}/results.json") as file:
            return json.load(file)

    return run


@pytest.mark.parametrize(("size", "cases"), [
    *(pytest.param(size, cases, id=f"{size}") for size, cases in CASES.items()),
    *(pytest.param(size, cases, id=f"{size} more", marks=pytest.mark.slow) for size, cases in MORE_CASES.items()),
])
def test_processes_equal_one(start, size, cases):
    results = start(parallel_worker.work, size, cases)
    assert len(results) == len(cases)
    bad = [(result["degrees"], result["grid"], result["out"]) for result in results if not result["out"] < 1e-6]
    assert not bad
    checked = 0
    for result in results:
        # A token alone in its sub-sequence, or two, leave q and k gradients of rounding noise.
        noise = ("self_attn.q", "self_attn.k", "self_attn.norm") if tuple(result["grid"]) == TINY else ()
        errors = {name: error for name, error in result.get("gradients", {}).items()
                  if not (noise and name.split(".", 2)[-1].startswith(noise))}
        checked += len(errors)
        assert not {name: error for name, error in errors.items() if not error < 1e-4}, result["degrees"]
        _check_traffic(result)
    assert checked > 200


def _check_traffic(result):
    """Bytes of all processes together against what the plan says."""
    config, grid, (s, u) = CONFIGS[result["config"]], tuple(result["grid"]), result["degrees"]
    row = config.dim * 4 * result["batch"]
    plan = SkiparsePlan(grid, config.sparse_ratio, s, u)
    moved = sum(count for i in range(s) for j in range(u) for r, count in enumerate(plan.switch_splits(i, j)[0])
                if r != i)
    patterns = config.block_patterns
    sparse = [pattern for pattern in patterns if pattern != "full"]
    switches = sum(a != b for a, b in zip(["token", *sparse], sparse, strict=False))
    assert result["traffic"]["switch"] == moved * row * switches
    ranks = s * u
    full_exchange = plan.num_tokens * row * 4 * (ranks - 1) // ranks
    sparse_exchange = plan.num_tokens * row * 4 * (u - 1) // u
    full_blocks = len(patterns) - len(sparse)
    assert result["traffic"]["ulysses"] == full_blocks * full_exchange + len(sparse) * sparse_exchange
    if grid == EVEN and switches:
        # A switch moves (S-1)/S of the shard, a quarter of the four Ulysses exchanges of a block at U = 1.
        assert result["traffic"]["switch"] * s == plan.num_tokens * row * switches * (s - 1)
        if u == 1:
            assert result["traffic"]["switch"] / switches == full_exchange / 4


@pytest.mark.slow
def test_720p_shards_on_eight_processes(start):
    grid = (21, 45, 80)
    results = start(parallel_worker.exchange_real_grid, 8, [(4, 2), (2, 4), (1, 8)], grid)
    for result in results:
        token, group, equal = zip(*result["processes"], strict=True)
        assert all(equal)
        assert sum(token) == sum(group) == math.prod(grid)
        assert len(set(token)) > 1 or result["degrees"] == [1, 8]
        assert max(token) < 1.03 * math.prod(grid) / 8


def test_degrees_that_do_not_divide_are_refused():
    assert valid_degrees(8, 2, 40) == [(1, 8), (2, 4), (4, 2)]
    assert valid_degrees(8, 2, 12) == []
    assert valid_degrees(12, 2, 12) == [(1, 12), (2, 6), (4, 3)]
    with pytest.raises(ValueError, match=r"4x2 .* 12 heads; valid for 8 processes: none"):
        ParallelSequence(2, 12, Mesh(0, 4, 2, None, None, None))
    with pytest.raises(ValueError, match=r"3x1 .* valid for 3 processes: \[\(1, 3\)\]"):
        ParallelSequence(2, 12, Mesh(0, 3, 1, None, None, None))
    with pytest.raises(ValueError, match="exchange is 'fast'"):
        ParallelSequence(2, 12, Mesh(0, 2, 1, None, None, None), "fast")
