"""What `plan` puts together."""

from collections.abc import Iterable
from dataclasses import asdict

from ospnext_ms.planning.devices import device_of
from ospnext_ms.planning.plan import describe, make_plan
from ospnext_ms.planning.seconds import describe_seconds, forward_seconds, growth, step_seconds
from ospnext_ms.planning.workload import read_workload


def plan(path: str, overrides: Iterable[str] = (), *, devices: int | None = None,
         video: tuple[int, int, int] | None = None, device: str | None = None,
         device_overrides: Iterable[str] = ()) -> tuple[dict, str]:
    """All figures of a YAML file's run, as plain values and as text.

    Args:
        devices, video: see read_workload. device, device_overrides: see device_of; without them no seconds.

    Raises:
        As read_workload and device_of do.
    """
    if device_overrides and not device:
        raise ValueError("--device-set changes a device's rates; say which with --device")
    workload = read_workload(path, overrides, devices, video)
    figures = make_plan(workload)
    text = describe(figures)
    if device:
        rates = device_of(device, device_overrides)
        figures["seconds"] = {"device": device, "forward": forward_seconds(workload, rates),
                              "step": step_seconds(workload, rates),
                              "growth": [asdict(row) for row in growth(workload, rates)]}
        text += "\n\n" + describe_seconds(workload, device, rates)
    return figures, text
