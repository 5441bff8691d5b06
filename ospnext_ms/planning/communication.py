"""Bytes that a process sends to others in one step, collective by collective, counted on the SkiparsePlan.

Labels are those under which kernels.collectives counts. R = S * U processes share a video of N tokens of width C.
"""

from collections.abc import Mapping

from ospnext_ms.models.config import DiTConfig
from ospnext_ms.planning import shapes
from ospnext_ms.planning.workload import Workload
from ospnext_ms.skiparse import PATTERNS, SkiparsePlan


def switches(config: DiTConfig) -> int:
    """Number of token <-> group switches in one forward."""
    orders = ["token", *(pattern for pattern in config.block_patterns if pattern != "full")]
    return sum(a != b for a, b in zip(orders, orders[1:], strict=False))


def video_bytes(workload: Workload) -> tuple[dict[str, int], dict[str, float]]:
    """{label: bytes} of one forward of one sample, as sent by the process (s, u) that sends most; mean over all beside.

    Returns ({label: most}, {label: mean}).
    """
    parallel, dit = workload.parallel, workload.dit
    skiparse, ulysses = parallel.skiparse_parallel, parallel.ulysses_parallel
    plan = SkiparsePlan(workload.grid, dit.sparse_ratio, skiparse, ulysses)
    rows = {(pattern, s, u): len(plan.rank_tokens(pattern, s, u)) for pattern in PATTERNS
            for s in range(skiparse) for u in range(ulysses)}
    ranks = [_rank_bytes(plan, rows, workload, s, u) for s in range(skiparse) for u in range(ulysses)]
    return ({label: max(rank[label] for rank in ranks) for label in ranks[0]},
            {label: sum(rank[label] for rank in ranks) / len(ranks) for label in ranks[0]})


def _rank_bytes(plan: SkiparsePlan, rows: Mapping[tuple[str, int, int], int], workload: Workload, s: int,
                u: int) -> dict[str, int]:
    """{label: bytes} of one forward of process (s, u); `rows` are the tokens of each (pattern, s, u)."""
    dit, width = workload.dit, workload.dit.dim
    send, receive = plan.switch_splits(s, u)
    total: dict[str, int] = dict.fromkeys(("switch", "full", "sparse", "leave"), 0)
    order = "token"
    for pattern in dit.block_patterns:
        if pattern not in ("full", order):
            moved = sum(send if pattern == "group" else receive) - send[s]
            total["switch"] += moved * width * workload.switched
            order = pattern
        if pattern == "full":
            total["full"] += _ulysses(rows[order, s, u], plan.num_tokens, workload.degree, workload)
        else:
            shared = sum(rows[order, s, i] for i in range(plan.ulysses_parallel))
            total["sparse"] += _ulysses(rows[order, s, u], shared, plan.ulysses_parallel, workload)
    patch = dit.out_channels * dit.patch_size[0] * dit.patch_size[1] * dit.patch_size[2]
    total["leave"] = (workload.degree - 1) * rows[order, s, u] * patch * 4
    return total


def _ulysses(own: int, shared: int, degree: int, workload: Workload) -> int:
    """q, k, v of the own tokens to the owners of their heads, and the result for others' tokens back to them."""
    width = workload.dit.dim // degree
    return workload.compute * width * (3 * own * (degree - 1) + (shared - own))


def closed_form(workload: Workload) -> dict[str, float]:
    """{label: bytes} of one switch, one sparse and one full block from the formulas of the shard N / R alone."""
    parallel, degree = workload.parallel, workload.degree
    tokens = workload.grid[0] * workload.grid[1] * workload.grid[2]
    shard = tokens / degree * workload.dit.dim
    skiparse, ulysses = parallel.skiparse_parallel, parallel.ulysses_parallel
    return {"switch": (skiparse - 1) / skiparse * shard * workload.switched,
            "sparse": 4 * (ulysses - 1) / ulysses * shard * workload.compute,
            "full": 4 * (degree - 1) / degree * shard * workload.compute}


def step_bytes(workload: Workload) -> dict[str, int]:
    """{label: bytes} of the process that sends most in one step: all samples, forward and backward, and the weights."""
    most, _ = video_bytes(workload)
    trains = workload.trained is not None
    # A gradient goes back the way its tensor came; recomputing a block repeats the exchanges inside it.
    times = {"switch": 2, "full": 2 + workload.recompute, "sparse": 2 + workload.recompute, "leave": 1}
    samples = workload.batch * workload.batches * workload.forwards
    result = {label: samples * most[label] * (times[label] if trains else 1) for label in most}
    return result | _weight_bytes(workload)


def gathered_bytes(workload: Workload) -> int:
    """What a process sends of its weights in one forward, where they are spread over several."""
    shard = workload.parallel.parameter_shard
    linear = [shape for shape in shapes.dit_parameters(workload.dit).values() if shapes.is_linear_weight(shape)]
    return (shard - 1) * workload.compute * sum(-(-shape[0] // shard) * shape[1] for shape in linear)


def _weight_bytes(workload: Workload) -> dict[str, int]:
    parallel = workload.parallel
    parameters = shapes.dit_parameters(workload.dit)
    shard, devices, trains = parallel.parameter_shard, workload.devices, workload.trained is not None
    passes = workload.batches * workload.forwards
    linear = {name: shape for name, shape in parameters.items() if shapes.is_linear_weight(shape)}
    rows = sum(-(-shape[0] // shard) * shape[1] for shape in linear.values()) if shard > 1 else 0
    in_blocks = sum(-(-shape[0] // shard) * shape[1] for name, shape in linear.items() if name.startswith("blocks."))
    result = {"weights": passes * gathered_bytes(workload)}
    if trains and workload.recompute and shard > 1:
        result["weights"] += (shard - 1) * workload.compute * passes * in_blocks
    if not trains:
        return result
    if workload.trained == "lora":
        return result | {"gradients": _ring(4 * shapes.lora_count(parameters, workload.lora), devices)}
    result["weight_gradients"] = (shard - 1) * 4 * passes * rows
    whole = shapes.count({name: shape for name, shape in parameters.items() if shard == 1 or name not in linear})
    return result | {"gradients": _ring(4 * whole, devices) + _ring(4 * rows, devices // shard)}


def _ring(num_bytes: int, degree: int) -> int:
    """What a ring All-Reduce sends."""
    return 2 * (degree - 1) * num_bytes // degree
