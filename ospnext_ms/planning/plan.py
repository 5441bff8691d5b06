"""`python -m ospnext_ms plan`: what a run needs, from its YAML file alone, before any device is touched."""

from dataclasses import replace

from ospnext_ms.models.config import DiTConfig
from ospnext_ms.models.flops import forward_flops
from ospnext_ms.models.parameters import Shapes
from ospnext_ms.planning import communication, host, memory, shapes
from ospnext_ms.planning.workload import Workload

GB = 10**9
DEVICES_GB = (64, 128)
# Measured on an H200 in bf16: large matrix products, and attention with cuDNN.
LINEAR_TFLOPS, ATTENTION_TFLOPS = 790, 570


def make_plan(workload: Workload) -> dict:
    """All figures of a Workload as plain values: bytes and operations."""
    dit, parallel, grid = workload.dit, workload.parallel, workload.grid
    parameters = shapes.dit_parameters(dit)
    options = {"with recompute": True, "without recompute": False} if workload.trained else {"as it runs": False}
    estimates = {name: memory.estimate(workload, recompute) for name, recompute in options.items()}
    chosen, outside = memory.estimate(workload), memory.outside(workload)
    most, mean = communication.video_bytes(workload)
    return {
        "run_mode": workload.run_mode, "notes": list(workload.notes), "video": list(workload.video),
        "grid": list(grid), "tokens": grid[0] * grid[1] * grid[2], "devices": workload.devices,
        "degrees": {"data": parallel.data_parallel, "skiparse": parallel.skiparse_parallel,
                    "ulysses": parallel.ulysses_parallel, "parameter_shard": parallel.parameter_shard},
        "parameters": shapes.count(parameters),
        "trained_parameters": _trained(workload, parameters),
        "recompute": workload.recompute if workload.trained else None,
        "memory": {name: {"lasting": value.lasting, "phases": value.phases, "total": value.total}
                   for name, value in estimates.items()},
        "total": chosen.total,
        "outside": outside,
        "host": {"process": host.loading(workload), "staying": host.staying(workload),
                 **dict(zip(("processes", "together"), host.of_host(workload), strict=True))},
        "fits": {gb: chosen.total + sum(outside.values()) <= gb * GB for gb in DEVICES_GB},
        "flops": _flops(workload),
        "speed_up": _speed_up(dit, grid),
        "bytes_of_a_forward": {"most": most, "mean": mean, "closed_form": communication.closed_form(workload),
                               "switches": communication.switches(dit),
                               "full_blocks": dit.block_patterns.count("full"),
                               "sparse_blocks": dit.num_layers - dit.block_patterns.count("full"),
                               "all_full": communication.video_bytes(_all_full(workload))[0]},
        "bytes_of_a_step": communication.step_bytes(workload),
    }


def _trained(workload: Workload, parameters: Shapes) -> int:
    if workload.trained == "lora":
        return shapes.lora_count(parameters, workload.lora)
    return shapes.count(parameters) if workload.trained else 0


def _all_full(workload: Workload) -> Workload:
    return replace(workload, dit=replace(workload.dit, skiparse="full", num_full_blocks=None))


def _flops(workload: Workload) -> dict:
    """Operations of a step: what the model needs, and what a device computes for it."""
    forward = forward_flops(workload.dit, workload.grid)
    samples = workload.batch * workload.batches * workload.forwards
    # Backward computes each product twice, once for its input and once for its weight; frozen weights need one.
    passes = {None: 1, "lora": 2, "all": 3}[workload.trained]
    needed = passes * samples * forward["total"]
    computed = needed + (samples * forward["total"] if workload.trained and workload.recompute else 0)
    device = computed / workload.degree
    seconds = device / (workload.peak_tflops * 1e12) if workload.peak_tflops else None
    return {"forward": forward, "videos": workload.batch * workload.data_parallel // workload.groups_per_video,
            "batches": workload.batches, "calls": workload.forwards,
            "step": needed * workload.data_parallel, "device": device, "seconds_at_peak": seconds}


def _speed_up(dit: DiTConfig, grid: tuple[int, int, int]) -> dict[str, float]:
    """How much faster this layout is than full attention in every block, by operations and by rates."""
    sparse = forward_flops(dit, grid)
    full = forward_flops(replace(dit, skiparse="full", num_full_blocks=None), grid)

    def seconds(flops: dict[str, int]) -> float:
        return flops["linear"] / LINEAR_TFLOPS + flops["attention"] / ATTENTION_TFLOPS

    return {"operations": full["total"] / sparse["total"], "predicted": seconds(full) / seconds(sparse)}


def describe(plan: dict) -> str:
    """The figures as text."""
    sections = [_header(plan), _memory(plan), _arithmetic(plan)]
    if plan["devices"] > 1:
        sections.append(_communication(plan))
    return "\n\n".join("\n".join(section) for section in sections)


def _header(plan: dict) -> list[str]:
    degrees = plan["degrees"]
    lines = [f"{plan['run_mode']}: {plan['video'][0]}x{plan['video'][1]}, {plan['video'][2]} frames: grid "
             f"{'x'.join(map(str, plan['grid']))} = {plan['tokens']:,} tokens",
             f"{plan['devices']} devices: data {degrees['data']} x skiparse {degrees['skiparse']} x ulysses "
             f"{degrees['ulysses']}; weights over {degrees['parameter_shard']}",
             f"parameters of the transformer: {plan['parameters']:,}; trained: {plan['trained_parameters']:,}"]
    return lines + [f"note: {note}" for note in plan["notes"]]


def _memory(plan: dict) -> list[str]:
    lines = []
    for name, part in plan["memory"].items():
        largest = max(part["phases"], key=lambda phase: sum(part["phases"][phase].values()))
        lines.append(f"memory of a device {name}: {_gb(part['total'])}, highest in the phase {largest}")
        lines += [f"  {_gb(value):>10}  {key}" for key, value in part["lasting"].items()]
        for phase, parts in part["phases"].items():
            lines += [f"  {_gb(value):>10}  {key} ({phase})" for key, value in parts.items()]
    lines.append("beside it:")
    lines += [f"  {_gb(value):>10}  {key}" for key, value in plan["outside"].items() if value]
    state = {True: "with recompute", False: "without recompute", None: "as it runs"}[plan["recompute"]]
    for gb, fits in plan["fits"].items():
        verdict = "fits" if fits else "does not fit"
        lines.append(f"{gb} GB a device: {verdict} ({state}; {_gb(plan['total'])} and "
                     f"{_gb(sum(plan['outside'].values()))} beside)")
    loading = ", ".join(f"{_gb(value)} {name}" for name, value in plan["host"]["process"].items())
    lines.append(f"memory of the host while weights are loaded, a process: {loading}; the {plan['host']['processes']} "
                 f"of a host together: {_gb(plan['host']['together'])}")
    if staying := plan["host"]["staying"]:
        lines.append(f"of which the blocks' weights stay there: {_gb(staying)} a process, which go to its device once "
                     "in every call of the transformer")
    return lines


def _arithmetic(plan: dict) -> list[str]:
    flops, forward = plan["flops"], plan["flops"]["forward"]
    lines = [f"operations of a forward: {_tera(forward['total'])} ({_tera(forward['linear'])} in linears, "
             f"{_tera(forward['attention'])} in attention)",
             f"operations of {_unit(plan)}: {_tera(flops['step'])}; a device computes {_tera(flops['device'])}"]
    if flops["seconds_at_peak"]:
        lines.append(f"that takes {flops['seconds_at_peak']:.1f} s at the device's peak, which is never reached")
    speed = plan["speed_up"]
    lines.append(f"against full attention in every block: {speed['operations']:.2f}x fewer operations, predicted "
                 f"{speed['predicted']:.2f}x faster (attention at {ATTENTION_TFLOPS / LINEAR_TFLOPS:.0%} of the rate "
                 "of linears, everything else free)")
    return lines


def _communication(plan: dict) -> list[str]:
    part = plan["bytes_of_a_forward"]
    most, mean, closed = part["most"], part["mean"], part["closed_form"]
    lines = ["bytes that a process sends in a forward of one sample, most and mean of all, and by formula:"]
    for label, number, unit in (("switch", part["switches"], "switches"), ("full", part["full_blocks"], "full blocks"),
                                ("sparse", part["sparse_blocks"], "sparse blocks")):
        lines.append(f"  {label:8} {_gb(most[label]):>10} {_gb(mean[label]):>10}  {number} {unit}, "
                     f"formula {_gb(number * closed[label])}")
    lines.append(f"  {'leave':8} {_gb(most['leave']):>10} {_gb(mean['leave']):>10}  the result to all")
    full = sum(part["all_full"].values())
    if full:
        lines.append(f"  together {sum(most.values()) / full:.0%} of what full attention in every block would send "
                     f"({_gb(full)})")
    lines.append(f"bytes that a process sends in {_unit(plan)}:")
    return lines + [f"  {_gb(value):>10}  {label}" for label, value in plan["bytes_of_a_step"].items()]


def _unit(plan: dict) -> str:
    """What the figures of a step are about, in words."""
    flops = plan["flops"]
    videos = f"{flops['videos']} video{'s' if flops['videos'] > 1 else ''}"
    if plan["run_mode"] == "generate":
        return f"{videos} ({flops['batches']} sampling steps, {flops['calls']} calls each)"
    if plan["run_mode"] == "post_train":
        return f"an update step of {flops['batches']} x {videos}, {flops['calls']} calls each"
    return f"a training step of {flops['batches']} x {videos}"


def _gb(value: float) -> str:
    return f"{value / GB:.2f} GB" if value >= 1e7 else f"{value / 1e6:.3f} MB"


def _tera(value: float) -> str:
    return f"{value / 1e15:.2f} PFLOP" if value >= 1e15 else f"{value / 1e12:.3f} TFLOP"
