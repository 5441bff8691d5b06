"""`python -m ospnext_ms vbench {generate,score,total}`: VBench from its prompts to the total score."""

import contextlib
import json
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from pathlib import Path

from ospnext_ms.commands.options import add_config_options, add_part_option
from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import load_config
from ospnext_ms.evaluation.vbench.dimensions import DIMENSIONS
from ospnext_ms.evaluation.vbench.generate import folder_of, jobs_of
from ospnext_ms.evaluation.vbench.report import as_json, table, write_report
from ospnext_ms.evaluation.vbench.results import few_videos, merge, read_results, write_archive
from ospnext_ms.evaluation.vbench.score import score
from ospnext_ms.evaluation.vbench.total import add_up
from ospnext_ms.generation.run import make_videos
from ospnext_ms.parallel.interruption import Interruption


def add_arguments(parser: ArgumentParser) -> None:
    """Options of `vbench`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text, add in (("generate", "make the videos that the suite asks for", _add_generate),
                            ("score", "have upstream's package score a folder of videos", _add_score),
                            ("total", "add the scores of 16 dimensions up", _add_total)):
        add(actions.add_parser(name, help=text, description=text))


def _add_generate(parser: ArgumentParser) -> None:
    add_config_options(parser, "yaml_configs/generate", "sampling.steps=20")
    parser.add_argument("--suite", required=True, metavar="FILE", help="VBench_full_info.json of upstream's package")
    parser.add_argument("--augmented", metavar="FILE", help="longer prompts for the network, one an entry of the suite")
    parser.add_argument("--short", metavar="FILE", help="short prompts of --augmented, line by line, where the suite "
                                                        "has them in another order")
    _add_dimensions(parser)
    parser.add_argument("--samples", type=_count, metavar="N",
                        help="videos of a prompt: 5, and 25 of temporal flickering when --dimensions names it")
    parser.add_argument("--seed", type=int, metavar="N", help="of the first video, instead of sampling.seed")
    parser.add_argument("--output", metavar="DIR", help="folder for videos/ and records/, instead of output_dir")
    add_part_option(parser, "where several processes or hosts, each with devices of its own, share the suite")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace videos in the folder that were made with other settings")
    parser.add_argument("--missing", action="store_true", help="make nothing: print the names that are not complete")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a number of videos")
    return int(text)


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
    if arguments.action == "generate":
        return _generate(arguments)
    with _ending_at_signals():
        return {"score": _score, "total": _total}[arguments.action](arguments)


def _generate(arguments: Namespace) -> int:
    values: dict[str, object] = {"prompts.prompt": None, "prompts.prompt_file": arguments.suite}
    values |= {} if arguments.output is None else {"output_dir": arguments.output}
    values |= {} if arguments.seed is None else {"sampling.seed": arguments.seed}
    config = load_config(GenerateConfig, arguments.config, arguments.overrides, values)
    folder = folder_of(config.output_dir)
    jobs = jobs_of(config, arguments.suite, arguments.augmented, arguments.short, arguments.dimensions,
                   arguments.samples)
    if arguments.missing:
        missing = folder.missing(jobs)
        for job in missing:
            print(f"{job.name}.mp4")
        print(f"{len(missing)} of {len(jobs)} videos are not complete in {folder.videos}", file=sys.stderr)
        return 1 if missing else 0
    with Interruption("the step, or the video that is being written, is finished") as interruption:
        for path in make_videos(config, jobs, folder, part=arguments.part, overwrite=arguments.overwrite,
                                interruption=interruption):
            print(path)
    return 0


def _score(arguments: Namespace) -> int:
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
        print(f"{signal.Signals(number).name}: ended; the same command goes on with what is not scored",
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
