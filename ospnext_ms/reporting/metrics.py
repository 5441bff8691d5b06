"""metrics.jsonl: every figure of a run with all its digits, one JSON object a step."""

import json
from pathlib import Path

from ospnext_ms.storage.files import atomic_path

METRICS = "metrics.jsonl"


class MetricsFile:
    """The file of a run's figures, to be added to; what stands there of steps after `steps_done` is dropped.

    Args:
        folder: of the run, made if it is not there. steps_done: the step that the run starts or resumes at.
    """

    def __init__(self, folder, steps_done=0):
        path = Path(folder) / METRICS
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            kept = [record for record in read_metrics(folder) if record["step"] <= steps_done]
            with atomic_path(path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def add(self, step, figures):
        """Writes the figures {name: JSON value} of a step, counted from 1."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")

    def close(self):
        """Nothing is added any more."""
        self._file.close()


def read_metrics(folder):
    """The records of a run: [{"step": ..., ...}], none where there is no file. A last line that a kill cut off is left
    out."""
    path, records = Path(folder) / METRICS, []
    if not path.is_file():
        return records
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
