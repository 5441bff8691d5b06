"""`python -m ospnext_ms vbench {generate,score,total}`: VBench from its prompts to the total score."""

import contextlib
import json
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from ospnext_ms.evaluation.vbench.dimensions import DIMENSIONS
from ospnext_ms.evaluation.vbench.report import as_json, table, write_report
from ospnext_ms.evaluation.vbench.results import few_videos, merge, read_results, write_archive
from ospnext_ms.evaluation.vbench.score import score
from ospnext_ms.evaluation.vbench.total import add_up


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `vbench`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text, add in (("score", "have upstream's package score a folder of videos", _add_score),
                            ("total", "add the scores of 16 dimensions up", _add_total)):
        add(actions.add_parser(name, help=text, description=text))


def _add_dimensions(parser: ArgumentParser) -> None:
    parser.add_argument("--dimensions", nargs="+", metavar="NAME", help=f"some of {', '.join(DIMENSIONS)}")


def _add_score(parser: ArgumentParser) -> None:
    parser.add_argument("--videos", required=True, metavar="DIR", help="folder of PROMPT-INDEX.mp4 and nothing else")
    parser.add_argument("--python", required=True, metavar="INTERPRETER",
                        help="Python of an environment with upstream's package (scripts/vbench.sh makes one)")
    parser.add_argument("--output", default="output/vbench_scores", metavar="DIR", help="folder for the result files")
    parser.add_argument("--suite", metavar="FILE", help="instead of the package's own VBench_full_info.json")
    _add_dimensions(parser)
    parser.add_argument("--device", metavar="NAME", help="PyTorch's device; by default cuda, where there is none cpu")
    parser.add_argument("--partial", action="store_true", help="score dimensions with videos missing, too")
    parser.add_argument("--overwrite", action="store_true", help="score again what has been scored")
    parser.add_argument("--check", action="store_true",
                        help="score nothing: say what each dimension lacks, videos and weights")


def _add_total(parser: ArgumentParser) -> None:
    parser.add_argument("--results", required=True, metavar="DIR|FILE",
                        help="folder of upstream's result files, one of them, a table {dimension: score}, or a zip")
    parser.add_argument("--unit", choices=("percent", "fraction"), help="of the scores, where they leave it open")
    parser.add_argument("--output", default="output/vbench_total", metavar="DIR", help="folder for JSON and figure")
    parser.add_argument("--json", action="store_true", help="print JSON (fractions) instead of the table")
    parser.add_argument("--zip", metavar="FILE", help="also write the archive that VBench's leaderboard takes")


def run(arguments: Namespace) -> int:
    """Runs an action of `vbench` with parsed options and returns the exit code."""
    return {"score": _score, "total": _total}[arguments.action](arguments)


def _score(arguments: Namespace) -> int:
    with _ending_at_signals():
        failed = score(arguments.videos, arguments.python, arguments.output, suite=arguments.suite,
                       dimensions=arguments.dimensions, device=arguments.device, partial=arguments.partial,
                       overwrite=arguments.overwrite, only_check=arguments.check)
    return 1 if failed else 0


def _total(arguments: Namespace) -> int:
    files = read_results(arguments.results, arguments.unit)
    total = add_up(merge(files))
    print(json.dumps(as_json(total), indent=2) if arguments.json else table(total))
    for line in few_videos(files):
        print(f"not comparable: {line}", file=sys.stderr)
    paths = write_report(total, Path(arguments.output))
    if arguments.zip:
        paths.append(write_archive(arguments.zip, files))
    for path in paths:
        print(path, file=sys.stderr if arguments.json else sys.stdout)
    return 0


@contextlib.contextmanager
def _ending_at_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the block, and upstream's process with it, with a line and exit status 143 or 130."""
    def end(number: int, frame: object) -> None:
        print(f"{signal.Signals(number).name}: ended; the same command goes on with the dimensions not scored",
              file=sys.stderr, flush=True)
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.signal(number, end) for number in numbers}
    # __main__ blocks them for `generate`, and a process that is started would inherit that.
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
