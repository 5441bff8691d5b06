"""Compiles for Ascend without a device, and tells what MindSpore decided.

    python -m tools.ascend_dry_run                              # all small cases
    python -m tools.ascend_dry_run forward hif8-native-gradient --json
    python -m tools.ascend_dry_run --config yaml_configs/train/14b.yaml --layers 8 --full 4 --rank 0 --world 8
    python -m tools.ascend_dry_run --table                      # every path at its real size, 90 minutes of a core

What it can tell: graphs that do not compile for Ascend, operators without an Ascend kernel, which operators take the
legacy path (aclop), planned peak memory without workspaces, the order of collectives of every rank. What it cannot:
numbers, speed, what CANN itself would refuse (dtypes, layouts, sizes), deadlocks, choices that depend on the chip
(MindSpore is told no SoC name here). aclop is a catch-all: that an operator is listed there does not say that CANN has
it.
"""

import argparse
import dataclasses
import json
import sys

from ospnext_ms.planning import memory
from tools.ascend_dry_run.collectives import first_difference
from tools.ascend_dry_run.paths import PATHS, from_config
from tools.ascend_dry_run.real import TABLE, print_table
from tools.ascend_dry_run.report import table
from tools.ascend_dry_run.run import run_case


def main(argv=None):
    """Returns the exit code: 1 where a case did not compile."""
    parser = argparse.ArgumentParser(prog="python -m tools.ascend_dry_run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", help=f"of {', '.join(PATHS)}; with --table of "
                        f"{'; '.join(TABLE)}; default: all of them")
    parser.add_argument("--table", action="store_true", help="the paths at their real sizes")
    parser.add_argument("--config", metavar="F", help="compile what a run of this YAML file would compile")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--layers", type=int, help="blocks instead of the configuration's")
    parser.add_argument("--full", type=int, help="full blocks among them")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=1, help="number of processes")
    parser.add_argument("--all-ranks", action="store_true",
                        help="compile every rank's graphs, and compare the order of their collectives")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds for one case")
    parser.add_argument("--log", metavar="FILE", help="keep MindSpore's log of the last case here")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    valid = TABLE if options.table else tuple(PATHS)
    unknown = [name for name in options.case if name not in valid]
    if unknown or (options.config and (options.case or options.table)):
        parser.error(f"no case {', '.join(unknown)}; there are {'; '.join(valid)}" if unknown
                     else "give cases or --config, not both")
    try:
        if options.table:
            return 0 if print_table(options.case or TABLE, options.timeout) else 1
        if options.config:
            jobs, work = from_config(options.config, options.overrides, options.layers, options.full, options.world)
        else:
            jobs = {name: PATHS[name] for name in options.case or PATHS}
        reports, problems = [], []
        for title, job in jobs.items():
            ranks = range(job.size) if options.all_ranks else [options.rank]
            done = {rank: run_case(job.case, job.options, title if len(ranks) == 1 else f"{title}, rank {rank}", rank,
                                   job.size, options.timeout, options.log) for rank in ranks}
            reports += done.values()
            if problem := first_difference({rank: report.collectives for rank, report in done.items()}):
                problems.append(f"{title}: {problem}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.config:
        print(f"plan: {memory.estimate(work).total / 2**20:.0f} MB", file=sys.stderr)
    print(json.dumps([dataclasses.asdict(report) for report in reports], indent=1) if options.json else table(reports))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems or any(report.error for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
