"""Seconds on paper: operations, bytes and messages over the rates of a device (devices.py), added up.

Nothing overlaps, and nothing waits: what is added is what a device computes, moves and sends. How far the sums are from
measured times is in docs/plan.md.
"""

from dataclasses import dataclass, replace

from ospnext_ms.models.flops import forward_flops
from ospnext_ms.planning import communication, memory, shapes
from ospnext_ms.planning.devices import Device
from ospnext_ms.planning.workload import Workload

# Of the products of a forward, those of a backward: twice in linears; attention computes its scores anew.
BACKWARD_LINEAR, BACKWARD_ATTENTION = 2.0, 2.5
# Bytes that an update of AdamW and the average moves for each parameter: weight, moments, gradient and average.
UPDATE_BYTES = 44
WORLDS = (64, 256, 1024)


def forward_seconds(workload: Workload, device: Device) -> dict[str, float]:
    """{part: seconds} of one forward of one sample on the processes that share it.

    Raises:
        ValueError: a workload in 8 bits on a device that has none.
    """
    dit, degree = workload.dit, workload.degree
    flops = forward_flops(dit, workload.grid)
    if dit.quant and not device.eight_bit:
        raise ValueError("dit.quant: this device has no 8-bit floating point; there it is emulated, slower than bf16")
    linear = device.eight_bit * device.eight_bit_share if dit.quant else device.bf16 * device.linear_share
    values = workload.grid[0] * workload.grid[1] * workload.grid[2] * dit.dim * dit.num_layers / degree
    most, _ = communication.video_bytes(workload)
    from_host = {}
    if workload.offload:
        from_host["host link"] = memory.block_bytes(workload) / (device.host * device.link_share * 1e9)
    return from_host | {
        "linears": flops["linear"] / degree / (linear * 1e12),
        "attention": flops["attention"] / degree / (device.bf16 * device.attention_share * 1e12),
        "elementwise": values * device.elementwise / (device.memory * 1e9),
        "exchanges": _link_seconds(sum(most.values()), degree, device),
        "weights": _link_seconds(communication.gathered_bytes(workload), workload.parallel.parameter_shard, device),
    }


def step_seconds(workload: Workload, device: Device) -> dict[str, float]:
    """{part: seconds} of a step: for generation all sampling steps of a batch, else forward, backward and update."""
    forward = forward_seconds(workload, device)
    samples = workload.batch * workload.batches * workload.forwards
    sent = communication.step_bytes(workload)
    if workload.trained is None:
        times: dict[str, float] = dict.fromkeys(("linears", "attention", "elementwise"), 1)
    else:
        again = int(workload.recompute)
        # Frozen weights need no gradients.
        backward = BACKWARD_LINEAR if workload.trained == "all" else 1.0
        times = {"linears": 1 + again + backward, "attention": 1 + again + BACKWARD_ATTENTION,
                 "elementwise": 1 + again + 2}
    parts = {name: samples * times[name] * forward[name] for name in times}
    if workload.offload:
        parts["host link"] = samples / workload.batch * forward["host link"]
    shard, degree = workload.parallel.parameter_shard, workload.degree
    exchanged = sum(sent[name] for name in ("switch", "full", "sparse", "leave"))
    parts["exchanges"] = _link_seconds(exchanged, degree, device)
    parts["weights"] = _link_seconds(sent["weights"] + sent.get("weight_gradients", 0), shard, device)
    parts["gradients"] = _link_seconds(sent.get("gradients", 0), workload.devices, device)
    parameters = shapes.dit_parameters(workload.dit)
    trained = {None: 0, "all": shapes.shard_count(parameters, shard),
               "lora": shapes.lora_count(parameters, workload.lora)}[workload.trained]
    parts["update"] = trained * UPDATE_BYTES / (device.memory * 1e9)
    return parts


def _link_seconds(num_bytes: float, ranks: int, device: Device) -> float:
    """A ring or an All-to-All among neighbouring ranks is as fast as its slowest link."""
    rate = device.inside if ranks <= device.in_host else device.across
    return num_bytes / (rate * device.link_share * 1e9)


@dataclass(frozen=True)
class Growth:
    """A step on `devices`: `videos` at once, each on skiparse x ulysses of them, weights over `shard`. Seconds of a
    forward and of the step, the step's slowest part, and what of it is sent between hosts.
    """

    devices: int
    videos: int
    skiparse: int
    ulysses: int
    shard: int
    forward: float
    step: float
    slowest: str
    between_hosts: tuple[str, ...]


def growth(workload: Workload, device: Device) -> list[Growth]:
    """More devices work on more videos: as the workload is laid out, with each video on one device, and, where weights
    are spread, with them over all devices. Memory is not looked at."""
    rows = []
    parallel = workload.parallel
    for devices in (workload.devices, *(world for world in WORLDS if world > workload.devices)):
        own = (parallel.skiparse_parallel, parallel.ulysses_parallel, parallel.parameter_shard)
        others = {(1, 1, own[2])} | ({(*own[:2], devices)} if own[2] > 1 else set())
        rows += [_grown(workload, device, devices, *degrees) for degrees in (own, *sorted(others - {own}))
                 if devices % (degrees[0] * degrees[1]) == 0 and devices % degrees[2] == 0]
    return rows


def _grown(workload: Workload, device: Device, devices: int, skiparse: int, ulysses: int, shard: int) -> Growth:
    degree = skiparse * ulysses
    grown = replace(workload, parallel=replace(
        workload.parallel, data_parallel=devices // degree, skiparse_parallel=skiparse, ulysses_parallel=ulysses,
        parameter_shard=shard))
    parts = step_seconds(grown, device)
    ranks = {"exchanges": degree, "weights": shard, "gradients": devices}
    between = tuple(part for part, count in ranks.items() if count > device.in_host and parts[part])
    return Growth(devices, devices // degree, skiparse, ulysses, shard, sum(forward_seconds(grown, device).values()),
                  sum(parts.values()), _slowest(parts), between)


def _slowest(parts: dict[str, float]) -> str:
    return max(parts, key=lambda part: parts[part])


def describe_seconds(workload: Workload, name: str, device: Device) -> str:
    """The figures as text."""
    forward, step = forward_seconds(workload, device), step_seconds(workload, device)
    unit = "all sampling steps" if workload.trained is None else "a step"
    lines = [f"on paper, {name} ({device.source}; estimated: {', '.join(device.estimated) or 'nothing'}):",
             f"  a forward of one sample on {workload.degree} devices: {_parts(forward)}",
             f"  {unit} on {workload.devices} devices: {_parts(step)}"]
    lines.append("  devices  videos  SSP x Ulysses  weights over  forward s    step s  a video s  most of it  "
                 "between hosts")
    for row in growth(workload, device):
        layout = f"{row.skiparse} x {row.ulysses}"
        lines.append(f"  {row.devices:7,}  {row.videos:6,}  {layout:>13}  {row.shard:12,}  {row.forward:9.2f}  "
                     f"{row.step:8.1f}  {row.step / row.videos:9.3f}  {row.slowest:10}  "
                     f"{', '.join(row.between_hosts) or '-'}")
    return "\n".join(lines)


def _parts(parts: dict[str, float]) -> str:
    shown = ", ".join(f"{key} {value:.2f}" for key, value in parts.items() if value >= 0.005)
    return f"{sum(parts.values()):.2f} s, limited by {_slowest(parts)} ({shown})"
