"""What is read from a dry run's log; the lines are of MindSpore 2.9.0."""

import pytest

from tools.ascend_dry_run.collectives import collectives_of, first_difference
from tools.ascend_dry_run.report import read_report, table

EXECUTED = ("[INFO] SESSION(1,7f,python):2026-01-01-00:00:00.000.000 [mindspore/ccsrc/backend/common/kernel_graph/"
            "kernel_graph.cc:983] PrintGraphExecuteOrder] Index[{place}], node name[{name}], logic id[4294967295], "
            "stream id[2], node info[@kernel_graph0:CNode_1{{[0]: ValueNode<Primitive> {operator}}}], group[{group}]\n")


def exchange(place, operator, group):
    return EXECUTED.format(place=place, name=f"recompute_Default/{operator}-op{place}", operator=operator, group=group)


LOG = ("[INFO] DEVICE(1,7f,python):2026 [x.cc:175] GenerateKernelMod] kernel opname:Cast, kernel type:opapi_kernel\n"
       "[INFO] DEVICE(1,7f,python):2026 [x.cc:175] GenerateKernelMod] kernel opname:Cast, kernel type:opapi_kernel\n"
       "[INFO] DEVICE(1,7f,python):2026 [x.cc:175] GenerateKernelMod] kernel opname:AddN, kernel type:acl_kernel\n"
       "[INFO] x] Used peak memory usage (without fragments): 800M\n"
       "[INFO] x] Actual peak memory usage (with fragments): 900M\n")


def test_operators_and_memory():
    report = read_report("small", "STAGE forward 1.5\nSTAGE gradient 2.0\nDONE\n", LOG)
    assert report.operators == {"aclnn": {"Cast": 2}, "aclop": {"AddN": 1}}
    assert (report.used_mb, report.peak_mb, report.seconds) == (800, 900, {"forward": 1.5, "gradient": 2.0})
    assert report.error is None
    assert "compiled" in table([report])
    assert "aclop: AddN 1" in table([report])


def test_a_case_that_did_not_end_is_an_error():
    assert read_report("small", "STAGE forward 1.5\n", LOG).error == "the process ended without a word (see its log)"
    log = LOG + "Traceback (most recent call last):\nRuntimeError: Kernel QuantMatmul is not registered\n"
    assert read_report("small", "", log).error == "RuntimeError: Kernel QuantMatmul is not registered"


@pytest.mark.parametrize("node", [
    "PrimFunc_Cast, [1]: param_t, [2]: ValueNode<Int64Imm> 44", "PrimFunc_Mul, [1]: x, [2]: ValueNode<Tensor> "
    "Tensor(shape=[1, 128], dtype=Float64, value=[...])"])
def test_fp64_is_seen(node):
    line = EXECUTED.format(place=0, name="Default/Cast-op0", operator=node, group="")
    assert read_report("small", "DONE", line).float64 == 1
    assert read_report("small", "DONE", line.replace("44", "43").replace("Float64", "Float32")).float64 == 0


def test_orders_of_collectives_are_compared():
    """Rank 2 is in groups of other names than rank 0, and exchanges in the same order."""
    rank_0 = exchange(1, "AllGather", "hccl_world_group") + exchange(2, "AlltoAllV", "ospnext_0_1")
    rank_2 = exchange(5, "AllGather", "hccl_world_group") + exchange(9, "AlltoAllV", "ospnext_2_3")
    orders = {0: collectives_of(rank_0), 2: collectives_of(rank_2)}
    assert orders[0] == ("AllGather world", "AlltoAllV +0+1")
    assert first_difference(orders) is None


@pytest.mark.parametrize(("lines", "problem"), [
    ((("AlltoAllV", "ospnext_2_3"), ("AllGather", "hccl_world_group")),
     "collective 0 is AllGather world on rank 0 and AlltoAllV +0+1 on rank 2"),
    ((("AllGather", "hccl_world_group"), ("AlltoAllV", "ospnext_0_2_4_6")),
     "collective 1 is AlltoAllV +0+1 on rank 0 and AlltoAllV +0+2+4+6 on rank 2"),
    ((("AllGather", "hccl_world_group"),), "rank 0 has 2 collectives and rank 2 has 1"),
])
def test_another_order_is_noticed(lines, problem):
    rank_0 = exchange(1, "AllGather", "hccl_world_group") + exchange(2, "AlltoAllV", "ospnext_0_1")
    rank_2 = "".join(exchange(place, *line) for place, line in enumerate(lines))
    assert first_difference({0: collectives_of(rank_0), 2: collectives_of(rank_2)}) == problem
