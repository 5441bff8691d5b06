"""metrics.jsonl: every figure of a run with all its digits, one JSON object a step."""

import json
from pathlib import Path

from ospnext_ms.storage.files import atomic_path, naming

METRICS = "metrics.jsonl"
_NAMED = 10
# What is beyond is no step that was ever done.
MAX_STEP = 2**62


class MetricsFile:
    """The file of a run's figures, to be added to; what stands there of steps after `steps_done` is dropped.

    Lines that cannot be read are named and dropped too.

    Args:
        folder: of the run, made if it is not there. steps_done: the step that the run starts or resumes at.
    """

    def __init__(self, folder, steps_done=0):
        self._path = path = Path(folder) / METRICS
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            kept = [record for record in read_metrics(folder, print) if record["step"] <= steps_done]
            with atomic_path(path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def add(self, step, figures):
        """Writes the figures {name: JSON value} of a step, counted from 1."""
        with naming(self._path):
            self._file.write(json.dumps({"step": step, **figures}) + "\n")

    def close(self):
        """Nothing is added any more."""
        self._file.close()


def read_metrics(folder, report=None):
    """The records of a run: [{"step": ..., ...}], none where there is no file.

    Lines that are none (a kill cuts the last one off, a bad disk any) are left out; `report`: function that is told
    which, with the file's name.
    """
    path, records, damaged = Path(folder) / METRICS, [], []
    if not path.is_file():
        return records
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            record = json.loads(line) if line.strip() else None
            is_record = record is None or isinstance(record, dict) and _is_step(record.get("step"))
        except (ValueError, RecursionError):
            is_record = False
        if not is_record:
            damaged.append(number)
        elif record is not None:
            records.append(record)
    if damaged and report:
        report(f"{path}: line {', '.join(map(str, damaged[:_NAMED]))}{' ...' * (len(damaged) > _NAMED)} cannot be read "
               f"and is left out; the other {len(records)} are kept")
    return records


def has_figure(folder, step, name):
    """Whether a run has recorded the figure `name` at `step`."""
    return any(record["step"] == step and name in record for record in read_metrics(folder))


def _is_step(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_STEP
