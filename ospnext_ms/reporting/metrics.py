"""metrics.jsonl: every figure of a run with all its digits, one JSON object a step."""

import json
from pathlib import Path

from ospnext_ms.storage.files import atomic_path

METRICS = "metrics.jsonl"


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


def drop_later(folder, step):
    """Takes out of a run's file what was written for steps after `step`, from which it is resumed."""
    path = Path(folder) / METRICS
    if not path.is_file():
        return
    kept = [record for record in read_metrics(folder) if record["step"] <= step]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
