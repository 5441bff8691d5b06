"""Planned bytes against the closed form, and what a step sends."""


import pytest

from ospnext_ms.config.sections import ParallelSection
from ospnext_ms.models.config import DiTConfig
from ospnext_ms.planning import communication, shapes
from tests.support.workload import OSP_NEXT_14B, workload

CONFIG = DiTConfig(16, 16, 4, 8, 8, 8, 4, num_full_blocks=4)


@pytest.mark.parametrize(("skiparse", "ulysses"), [(4, 1), (4, 2), (2, 2), (2, 4)])
def test_the_closed_form_where_shards_are_even(skiparse, ulysses):
    # 16 x 32 patches and 4 frames: every tile of 4 x 4 is whole, every shard equally long.
    plan = workload(CONFIG, (256, 512, 13), skiparse, ulysses)
    most, mean = communication.video_bytes(plan)
    assert most == mean
    closed = communication.closed_form(plan)
    assert communication.switches(CONFIG) == 3
    assert most["switch"] == pytest.approx(3 * closed["switch"])
    assert most["full"] == pytest.approx(4 * closed["full"])
    assert most["sparse"] == pytest.approx(4 * closed["sparse"])


@pytest.mark.parametrize(("switch_dtype", "share"), [(None, 1), ("bf16", 0.5), ("fp16", 0.5)])
def test_a_switch_may_send_less_than_the_stream(switch_dtype, share):
    parallel = ParallelSection(data_parallel=1, skiparse_parallel=4, switch_dtype=switch_dtype)
    plain = workload(OSP_NEXT_14B, (768, 1344, 81), 4, 1, compute=2, residual=4)
    plan = workload(OSP_NEXT_14B, (768, 1344, 81), 4, 1, compute=2, residual=4, parallel=parallel)
    for count in (communication.closed_form, lambda each: communication.video_bytes(each)[0]):
        assert count(plan)["switch"] == share * count(plain)["switch"]
        assert count(plan)["full"] == count(plain)["full"]


def test_a_switch_is_a_quarter_of_ulysses_exchanges_of_a_block():
    closed = communication.closed_form(workload(OSP_NEXT_14B, (768, 1344, 81), 4, 1, compute=2, residual=2))
    assert closed["switch"] == pytest.approx(closed["full"] / 4)
    assert closed["sparse"] == 0
    assert communication.switches(OSP_NEXT_14B) == 31


def test_the_mean_of_uneven_shards_is_near_the_closed_form():
    plan = workload(OSP_NEXT_14B, (720, 1280, 81), 4, 2, compute=2, residual=2)
    most, mean = communication.video_bytes(plan)
    closed = communication.closed_form(plan)
    for label, number in (("switch", 31), ("full", 8), ("sparse", 32)):
        assert mean[label] == pytest.approx(number * closed[label], rel=0.02)
        assert mean[label] <= most[label] <= 1.03 * mean[label]


def test_bytes_of_a_step():
    plan = workload(CONFIG, (64, 64, 5), 2, 2)
    forward = communication.step_bytes(workload(CONFIG, (64, 64, 5), 2, 2, trained=None))
    step = communication.step_bytes(plan)
    again = communication.step_bytes(workload(CONFIG, (64, 64, 5), 2, 2, recompute=True, batches=2))
    for label, passes in (("switch", (2, 2)), ("full", (2, 3)), ("sparse", (2, 3)), ("leave", (1, 1))):
        assert step[label] == passes[0] * forward[label]
        assert again[label] == 2 * passes[1] * forward[label]
    assert forward["weights"] == step["weights"] == 0
    values = shapes.count(shapes.dit_parameters(CONFIG))
    # A ring sends everything twice but for the own part; nothing is sharded here.
    assert step["gradients"] == 2 * 3 * 4 * values // 4


def test_sharded_weights_are_gathered_and_their_gradients_scattered():
    parallel = ParallelSection(data_parallel=1, skiparse_parallel=4, parameter_shard=4)
    step = communication.step_bytes(workload(CONFIG, (64, 64, 5), 4, 1, parallel=parallel))
    again = communication.step_bytes(workload(CONFIG, (64, 64, 5), 4, 1, parallel=parallel, recompute=True))
    linears = 8 * (8 * 16 * 16 + 2 * 16 * 16)
    others = 8 * 16 + 16 * 16 + 8 * 16 + 16 * 16 + 6 * 16 * 16 + 64 * 16
    assert step["weights"] == step["weight_gradients"] == 3 * (linears + others)
    assert again["weights"] - step["weights"] == 3 * linears
    assert again["weight_gradients"] == step["weight_gradients"]
