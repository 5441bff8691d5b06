"""One video on several real processes against one process: outputs, gradients, payload."""

import pytest

from ospnext_ms.skiparse import PATTERNS, SkiparsePlan
from tests.distributed.cases import DEGREES, EXCHANGES, GENERATION, MODEL, cases

pytestmark = [pytest.mark.framework, pytest.mark.processes]

SPEEDS = {"quick": (), "slow": pytest.mark.slow}


def marked(table):
    """Parameters of a test from a function (world size, speed) -> cases."""
    return [pytest.param(world, speed, case, marks=mark, id=f"{world}-{getattr(case, 'name', case)}")
            for speed, mark in SPEEDS.items() for world in DEGREES for case in table(world, speed)]


CASES = marked(cases)
FLOAT_BYTES = 4
FULL_BLOCKS, SPARSE_BLOCKS, SWITCHES = 4, 4, 3


def check_numbers(results, case):
    """Forward within 1e-6, every gradient within rtol 1e-4 and atol 1e-6, on every rank."""
    for result in (rank[case.name] for rank in results):
        assert result["forward"] < 1e-6
        wrong = {name: error for name, error in result["gradients"].items() if not error <= 1}
        assert not wrong
        assert len(result["gradients"]) > 150
        assert result["norms"] < 1e-6


@pytest.mark.parametrize(("world", "speed", "case"), CASES)
def test_outputs_and_gradients_are_those_of_one_process(job, world, speed, case):
    results = job(world, speed)
    check_numbers(results, case)
    assert case.name in results[0]


@pytest.mark.parametrize(("world", "speed", "case"), marked(lambda *key: EXCHANGES[key]))
def test_compiled_exchanges(job, world, speed, case):
    """Uneven and empty shards under ms.jit, gradients included."""
    degrees, grid = case
    for rank in job(world, speed):
        result = rank[f"exchanges-{degrees}-grid{grid[1]}"]
        assert result["forward"] < 1e-6
        assert result["gradient"] < 1e-5
        rounds = not degrees.startswith("1x")
        assert (1e-5 if rounds else 0) <= result["switch in fp16"] < (1e-3 if rounds else 1e-6)


@pytest.mark.parametrize(("world", "speed", "case"), marked(lambda *key: GENERATION[key]))
def test_generated_latents_do_not_depend_on_the_number_of_processes(job, world, speed, case):
    degrees, split = case
    for rank in job(world, speed):
        assert rank[f"latents-{degrees}-{split}"] < 1e-5


@pytest.mark.parametrize(("world", "speed", "case"), [param for param in CASES if not param.values[2].compiled])
def test_payload_is_that_of_the_plan(job, world, speed, case):
    """What each rank sent, counted as it ran, against the plan: one All-to-All a switch, nothing at other borders."""
    skiparse, ulysses = map(int, case.degrees.split("x"))
    runs = 2 if case.recompute else 1
    token = case.batch * MODEL["dim"] * FLOAT_BYTES
    plan = SkiparsePlan(case.grid, 2, skiparse, ulysses)
    for rank, result in enumerate(rank[case.name]["traffic"] for rank in job(world, speed)):
        s, u = divmod(rank % (skiparse * ulysses), ulysses)
        calls, sent = result["calls"], result["bytes"]
        assert calls["full"] == 2 * FULL_BLOCKS * runs
        assert calls.get("switch", 0) == (SWITCHES if skiparse > 1 else 0)
        # Ranks whose sub-sequences are all empty have nothing to attend to.
        in_use = sum(any(any(plan.rank_lengths(pattern, s, peer)) for peer in range(ulysses)) for pattern in PATTERNS)
        assert calls.get("sparse", 0) == (2 * SPARSE_BLOCKS // 2 * in_use * runs if ulysses > 1 else 0)
        assert set(calls) <= {"full", "switch", "sparse", "leave", "weights", "weight_gradients"}
        to_group, to_token = (sum(counts) - counts[s] for counts in plan.switch_splits(s, u))
        assert sent.get("switch", 0) == (2 * to_group + to_token) * token


@pytest.mark.parametrize(("world", "degrees"), [(world, degrees) for world in DEGREES for degrees in DEGREES[world]])
def test_payload_on_a_grid_that_divides_follows_the_closed_form(job, world, degrees):
    """(S-1)/S of the shard a switch and 4(U-1)/U of it inside sub-sequences, against 4(R-1)/R for Ulysses over R = SU.

    For U = 1 a switch is a quarter of the four exchanges of a block.
    """
    skiparse, ulysses = map(int, degrees.split("x"))
    ranks = skiparse * ulysses
    shard = 2 * 8 * 8 // ranks * MODEL["dim"] * FLOAT_BYTES
    for result in (rank[f"{degrees}-grid2x8x8"]["traffic"]["bytes"] for rank in job(world)):
        full_block = result["full"] / FULL_BLOCKS
        switch = result.get("switch", 0) / SWITCHES
        sparse_block = result.get("sparse", 0) / SPARSE_BLOCKS
        print(f"{degrees}: a full block {full_block:.0f} bytes (4(R-1)/R: {4 * (ranks - 1) / ranks * shard:.0f}), "
              f"a switch {switch:.0f} ((S-1)/S: {(skiparse - 1) / skiparse * shard:.0f}), "
              f"a sparse block {sparse_block:.0f} (4(U-1)/U: {4 * (ulysses - 1) / ulysses * shard:.0f})")
        assert full_block == 4 * (ranks - 1) / ranks * shard
        assert switch == (skiparse - 1) / skiparse * shard
        assert sparse_block == 4 * (ulysses - 1) / ulysses * shard
        assert ulysses > 1 or switch == full_block / 4


@pytest.mark.parametrize(("world", "speed", "case"), [param for param in CASES if not param.values[2].compiled])
def test_sharded_weights(job, world, speed, case):
    """A rank holds its part only, the whole can be put together again, and recomputed blocks gather anew."""
    for result in (rank[case.name] for rank in job(world, speed)):
        assert result["weights_equal"]
        if case.shard == 1:
            assert result["held"] == 1
            continue
        assert result["held"] < 1 / case.shard + 0.1
        calls = result["traffic"]["calls"]
        again = 10 * MODEL["num_layers"] if case.recompute else 0
        assert calls["weights"] == calls["weight_gradients"] + again
