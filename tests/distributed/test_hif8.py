"""Scales of HiF8 where real processes share a video: global ones make the operands those of one process."""

import json

import pytest

from tests.distributed.cases import HIF8

pytestmark = [pytest.mark.framework, pytest.mark.processes]


@pytest.mark.parametrize(("world", "speed", "degrees"), [
    pytest.param(world, speed, degrees, marks=pytest.mark.slow if speed == "slow" else ())
    for (world, speed), table in HIF8.items() for degrees in table])
def test_global_scales_give_the_operands_of_one_process(job, world, speed, degrees):
    ranks = [rank[f"hif8-{degrees}"] for rank in job(world, speed)]
    print(json.dumps(ranks, indent=1))
    for found in (rank[name] for rank in ranks for name in ("global", "centred")):
        assert found["scale_error"] < 1e-6
        assert found["v_factor_error"] < 1e-6
        # Sums of other lengths may differ in the last digit, which moves a number across a rounding now and then.
        assert found["x8_unequal"] < 1e-3
        assert found["k8_unequal"] < 1e-2
        # One exchange each for the inputs of 10 linear layers, and one for q, k and v together in 2 attentions; twice.
        assert found["scale_exchanges"] == 2 * (10 + 2)
    # The mean of the keys is one over all ranks: an exchange in every self-attention, none for the text, and none where
    # keys are centred once they were received.
    assert all([rank[name]["key_exchanges"] for name in ("global", "centred", "centred locally")] == [0, 2, 0]
               for rank in ranks)
    assert max(rank["centred locally"]["out_error"] for rank in ranks) < 0.1
    assert all(rank["codes"] == {"equal": True, "held": 1 / world} for rank in ranks)
    assert max(rank["local"]["scale_error"] for rank in ranks) > 1e-3
    assert all(rank["local"]["scale_exchanges"] == 0 for rank in ranks)
    worst = {scope: max(rank[scope]["out_error"] for rank in ranks) for scope in ("local", "global")}
    assert worst["global"] < worst["local"]
