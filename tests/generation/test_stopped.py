"""Eight videos by real processes: killed and gone on with, shared at the same time, under msrun; and their memory."""

import signal
import subprocess
import sys

import pytest

from tests.support import generate_runs as runs
from tests.support.configs import changed, write_config
from tests.support.msrun import environment, run_workers
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.framework]

COUNT = 8


def write_run(folder, model_files, count=COUNT, **context):
    """Options of `generate` for `count` prompts into folder/out."""
    folder.mkdir(exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(f"a {i} moving left" for i in range(count)))
    values = runs.settings(model_files, folder / "out")
    config = write_config(folder / "run.yaml", changed(values, context=context))
    return ["generate", "--config", str(config), "--prompt-file", str(folder / "prompts.txt")]


def start(*command):
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def run(*command):
    """(exit status, output)"""
    job = start(*command)
    output = job.communicate(timeout=550)[0]
    return job.returncode, output


def names(folder):
    return sorted(path.name for path in (folder / "out").iterdir())


def videos_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "out").glob("video_*.mp4")}


@pytest.fixture(scope="module")
def undisturbed(model_files, tmp_path_factory):
    """Function (mode) -> the names of a run's files, and the bytes of its videos."""
    done = {}

    def get(mode="pynative"):
        if mode not in done:
            folder = tmp_path_factory.mktemp("undisturbed")
            status, output = run("-m", "ospnext_ms", *write_run(folder, model_files, mode=mode))
            assert status == 0, output[-3000:]
            done[mode] = names(folder), videos_of(folder)
            assert len(done[mode][1]) == COUNT
        return done[mode]

    return get


@pytest.mark.parametrize(("number", "status", "mode"), [
    (signal.SIGKILL, -9, "pynative"), (signal.SIGKILL, -9, "graph"), (signal.SIGTERM, 143, "pynative"),
    (signal.SIGINT, 130, "graph"),
])
def test_stopped_after_the_third_and_gone_on_with(undisturbed, model_files, tmp_path, number, status, mode):
    files, expected = undisturbed(mode)
    command = write_run(tmp_path, model_files, mode=mode)
    stopped, output = run("-m", "tests.support.stopped", str(int(number)), "3", *command)
    assert stopped == status, output[-3000:]
    if number != signal.SIGKILL:
        assert f"{number.name}: 3 of 8 videos are complete in" in output
    left = [name for name in names(tmp_path) if name != ".run.lock"]
    assert left == [name for name in files if name[:10] in ("video_0000", "video_0001", "video_0002")]
    status, output = run("-m", "ospnext_ms", *command)
    assert status == 0, output[-3000:]
    assert "3 of 8 videos are complete in" in output
    assert names(tmp_path) == files
    assert videos_of(tmp_path) == expected


def test_two_parts_at_once_are_one_run(undisturbed, model_files, tmp_path):
    command = write_run(tmp_path, model_files)
    jobs = [start("-m", "ospnext_ms", *command, "--part", f"{i}/2") for i in (1, 2)]
    outputs = [job.communicate(timeout=550)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    files, expected = undisturbed()
    assert names(tmp_path) == files
    assert videos_of(tmp_path) == expected


def test_two_processes_of_msrun_are_one_run(undisturbed, model_files, tmp_path):
    command = write_run(tmp_path, model_files)
    status, output = run_workers(2, tmp_path, "-m", "ospnext_ms", *command)
    assert status == 0, output[-4000:]
    files, expected = undisturbed()
    assert names(tmp_path) == files
    assert videos_of(tmp_path) == expected
    logs = [(tmp_path / "logs" / f"worker_{rank}.log").read_text() for rank in range(2)]
    assert ["4 of 4 videos done" in log for log in logs] == [True, True]
    # What the first process finds in the folder, all are told.
    status, output = run_workers(2, tmp_path, "-m", "ospnext_ms", *command, "--set", "sampling.steps=1")
    assert status != 0
    assert output.count("sampling.steps: 2 then, 1 now (video_0000 and 7 more)") >= 2
    # Three are missing: the processes share what is left.
    for i in (1, 2, 5):
        (tmp_path / "out" / f"video_000{i}.mp4").unlink()
    status, output = run_workers(2, tmp_path, "-m", "ospnext_ms", *command)
    assert status == 0, output[-4000:]
    assert videos_of(tmp_path) == expected


MEASURE = """
import sys
from ospnext_ms.__main__ import main
from tests.support.resident import resident
status = main(sys.argv[1:])
print("PEAK", resident())
sys.exit(status)
"""


def test_memory_does_not_grow_with_the_number_of_videos(model_files, tmp_path):
    """Compiled, as shipped configurations are: uncompiled, MindSpore 2.9 keeps a kilobyte of every matrix product."""
    peaks = {}
    for count in (8, 64):
        command = write_run(tmp_path / str(count), model_files, count, mode="graph")
        done = subprocess.run([sys.executable, "-c", MEASURE, *command], cwd=ROOT, env=environment(), text=True,
                              capture_output=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert len(videos_of(tmp_path / str(count))) == count
        peaks[count] = int(done.stdout.split("PEAK")[1]) / 2**20
    print({count: f"{peak:.0f} MB" for count, peak in peaks.items()})
    assert peaks[64] < 1.05 * peaks[8], peaks
