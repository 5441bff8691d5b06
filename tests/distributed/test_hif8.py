"""Scales of HiF8 where real processes share a video: global ones make the operands those of one process."""

import json

import pytest

from tests.support.msrun import run_workers

pytestmark = [pytest.mark.framework, pytest.mark.processes]


@pytest.mark.parametrize("degrees", [(2, 1), pytest.param((2, 2), marks=pytest.mark.slow),
                                     pytest.param((4, 1), marks=pytest.mark.slow)])
def test_global_scales_give_the_operands_of_one_process(tmp_path, degrees):
    workers = degrees[0] * degrees[1]
    status, output = run_workers(workers, tmp_path, "-m", "tests.distributed.hif8_worker", str(tmp_path),
                                 *map(str, degrees))
    assert status == 0, output[-3000:]
    ranks = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(workers)]
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
    assert all(rank["codes"] == {"equal": True, "held": 1 / workers} for rank in ranks)
    assert max(rank["local"]["scale_error"] for rank in ranks) > 1e-3
    assert all(rank["local"]["scale_exchanges"] == 0 for rank in ranks)
    worst = {scope: max(rank[scope]["out_error"] for rank in ranks) for scope in ("local", "global")}
    assert worst["global"] < worst["local"]
