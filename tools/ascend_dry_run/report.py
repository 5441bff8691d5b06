"""What the dry run's log says: operators by path, planned memory, the order of collectives, errors."""

import re
from collections import Counter
from dataclasses import dataclass, field

from tools.ascend_dry_run.collectives import collectives_of

# MindSpore's kernel types. Those of the runtime (reshapes) launch nothing.
PATHS = {"opapi_kernel": "aclnn", "acl_kernel": "aclop", "hccl_kernel": "hccl", "rt_kernel": "none",
         "host_kernel": "host", "aicpu_kernel": "aicpu", "internal_kernel": "internal", "atb_kernel": "atb"}
_KERNEL = re.compile(r"kernel opname:(\w+), kernel type:(\w+)")
_PEAK = re.compile(r"Actual peak memory usage \(with fragments\): (\d+)M")
_USED = re.compile(r"Used peak memory usage \(without fragments\): (\d+)M")
# Type 44 is fp64.
_FLOAT64 = re.compile(r"PrintGraphExecuteOrder\] Index\[.*(?:dtype=Float64|PrimFunc_Cast, .*Int64Imm> 44\})")
_STAGE = re.compile(r"^STAGE (\S+) ([\d.]+)$", re.MULTILINE)
_ERROR = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception)): (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Report:
    """Of one case: `operators` {path: {name: nodes}}; peaks in MB of the whole process, without and with fragments;
    `seconds` {stage: seconds of a processor}; `collectives` see collectives.py; `float64` nodes that make or hold fp64,
    which Ascend's cores do not have; `error`, or None where it compiled.
    """

    name: str
    operators: dict = field(default_factory=dict)
    used_mb: int = 0
    peak_mb: int = 0
    seconds: dict = field(default_factory=dict)
    collectives: tuple = ()
    float64: int = 0
    error: str | None = None

    def nodes(self, path):
        """Number of nodes that take a path."""
        return sum(self.operators.get(path, {}).values())


def read_report(name, output, log):
    """Report of a case from what its process printed and logged."""
    counts = Counter(_KERNEL.findall(log))
    operators = {}
    for (operator, kind), number in sorted(counts.items()):
        operators.setdefault(PATHS.get(kind, kind), {})[operator] = number
    error = None
    if "DONE" not in output.splitlines():
        errors = _ERROR.findall(output + log)
        error = ": ".join(errors[-1]) if errors else "the process ended without a word (see its log)"
    return Report(name, operators, max(map(int, _USED.findall(log)), default=0),
                  max(map(int, _PEAK.findall(log)), default=0),
                  {stage: float(seconds) for stage, seconds in _STAGE.findall(output)}, collectives_of(log),
                  len(_FLOAT64.findall(log)), error)


def table(reports):
    """The reports as text, a line each, and what stays on the legacy path."""
    lines = [f"{'case':32} {'aclnn':>6} {'aclop':>6} {'hccl':>5} {'peak MB':>8} {'seconds':>8}  result"]
    for report in reports:
        seconds = sum(report.seconds.values())
        lines.append(f"{report.name:32} {report.nodes('aclnn'):6} {report.nodes('aclop'):6} {report.nodes('hccl'):5} "
                     f"{report.peak_mb:8} {seconds:8.1f}  {report.error or 'compiled'}")
        legacy = report.operators.get("aclop", {})
        if legacy:
            lines.append("    aclop: " + ", ".join(f"{name} {number}" for name, number in
                                                   sorted(legacy.items(), key=lambda item: -item[1])))
    return "\n".join(lines)
