"""What saving checkpoints cost a training run, from its metrics.jsonl:

    python -m tools.experiments.save_overhead output/train_tiny

Steps that began while a checkpoint was being copied or written are compared with the median of the others. The first
step of a run compiles and is left out, as is one after an evaluation.
"""

import argparse
from pathlib import Path

import numpy as np

from ospnext_ms.reporting.monitor import read_metrics


def saves_of(records):
    """[(first step, steps overlapped, seconds the training thread stood still, extra seconds over median steps)] and
    the median seconds of undisturbed steps."""
    steps = [record for record in records if "loss" in record][1:]
    median = float(np.median([record["step_seconds"] for record in steps if not _is_disturbed(record)]))
    saves = []
    for record in steps:
        extra = record["step_seconds"] - median
        if record["save_seconds"]:
            saves.append([record["step"], 1, record["save_seconds"], extra])
        elif record["saving"] and saves:
            saves[-1][1] += 1
            saves[-1][3] += extra
    return saves, median


def _is_disturbed(record):
    return record["saving"] or record["save_seconds"] > 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output_dir of a run")
    saves, median = saves_of(read_metrics(parser.parse_args().folder))
    print(f"undisturbed steps: median {median:.4f} s")
    for step, count, still, extra in saves:
        print(f"save before step {step}: overlaps {count} steps, stood still {still:.4f} s, "
              f"lengthened them by {extra:+.4f} s in all ({100 * extra / (count * median):+.1f} %)")
    if saves:
        share = sum(extra for *_, extra in saves) / (median * sum(count for _, count, *_ in saves))
        print(f"all {len(saves)} saves: {100 * share:+.1f} % of the steps they overlap")


if __name__ == "__main__":
    main()
