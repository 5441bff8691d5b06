"""What `doctor` looks at on an Ascend machine: versions that belong together, CANN's Python packages, collectives."""

import importlib.util
import re
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# MindSpore, MindFormers and CANN that belong together (docs/ascend.md).
SUPPORTED = {"mindspore": "2.9", "mindformers": "1.9"}
CANN, DRIVER = "9.0.0", "26.0.RC1"
DRIVER_FILE = Path("/usr/local/Ascend/driver/version.info")


def check_versions() -> str:
    """MindSpore and MindFormers are the pair that this package is made for."""
    found = {}
    for package, expected in SUPPORTED.items():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
        if not found[package].startswith(f"{expected}."):
            raise ValueError(f"{package} is {found[package]}; supported: "
                             + " with ".join(f"{name} {number}" for name, number in SUPPORTED.items()))
    return " with ".join(f"{name} {number}" for name, number in found.items())


def check_cann(cann: str) -> str:
    """CANN, its driver and its Python packages te and hccl. `cann`: what machine.find_cann tells."""
    missing = [package for package in ("te", "hccl") if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f"the Python packages {' and '.join(missing)} are not on the path; "
                         "source set_env.sh in CANN's folder")
    if not cann.startswith(f"{CANN} "):
        raise ValueError(f"CANN is {cann}; MindSpore {SUPPORTED['mindspore']} belongs to {CANN}")
    return f"CANN {cann}, driver {driver_version()} (MindSpore was released with {DRIVER})"


def driver_version(file: Path = DRIVER_FILE) -> str:
    """Version of the NPU driver, or that it is unknown."""
    found = re.search(r"(?im)^version=\[?([\w.]+)", file.read_text()) if file.is_file() else None
    return found[1] if found else "unknown"


def collective_checks() -> list[tuple[str, Callable[[], str]]]:
    """[(name, function)] of the collectives' contracts among the processes of msrun; none in a single process."""
    from ospnext_ms.config.sections import ParallelSection
    from ospnext_ms.parallel.degrees import world_size

    if world_size() == 1:
        return []

    from ospnext_ms.kernels.collective_contracts import COLLECTIVE_CONTRACTS
    from ospnext_ms.parallel.mesh import start_processes

    group = start_processes(ParallelSection()).world_group
    return [(name, partial(contract, group)) for name, contract in COLLECTIVE_CONTRACTS]
