"""`python -m ospnext_ms generate` under msrun: who writes what, and what happens when a worker dies."""

import os
import signal
import subprocess
import time

import numpy as np
import psutil
import pytest

from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import load_config
from ospnext_ms.data.video import read_video
from ospnext_ms.generation.run import generate
from ospnext_ms.storage.run_lock import LOCK
from tests.support.msrun import ROOT, end, environment, msrun_command, run_workers

pytestmark = [pytest.mark.framework, pytest.mark.processes]

DEADLINE_SECONDS = 60


def command(model_folder, *changes):
    options = [word for change in changes for word in ("--set", change)]
    return ["-m", "ospnext_ms", "generate", "--config", str(model_folder / "generate.yaml"), *options]


@pytest.mark.slow
def test_two_videos_on_two_processes_each(model_folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a 3 moving left\na 5\n")
    # Nearly without loss: at 18 one pixel that is rounded the other way can change the quantisers of a whole frame.
    shared = ("prompts.prompt=null", f"prompts.prompt_file={prompts}", "video.crf=1")
    alone = load_config(GenerateConfig, model_folder / "generate.yaml", [*shared, f"output_dir={tmp_path}/alone"])
    expected = sorted(path.relative_to(tmp_path / "alone") for path in generate(alone))
    status, output = run_workers(4, tmp_path, *command(
        model_folder, *shared, f"output_dir={tmp_path}/together", "parallel_config.skiparse_parallel=2"))
    assert status == 0, output[-4000:]
    written = sorted(path.relative_to(tmp_path / "together") for path in (tmp_path / "together").rglob("*"))
    assert written == expected
    for name in ("video_0000.mp4", "video_0001.mp4"):
        one, several = (read_video(tmp_path / run / name).astype(int) for run in ("alone", "together"))
        assert np.abs(one - several).mean() < 0.05
    logs = [(tmp_path / "logs" / f"worker_{rank}.log").read_text() for rank in range(4)]
    assert [log.count("video_000") for log in logs] == [2, 0, 2, 0]


@pytest.mark.slow
def test_blocks_that_come_in_turn_on_two_processes(model_folder, tmp_path):
    """Sequence shared and weights spread: the video of two processes that have all weights where they compute."""
    for name in ("false", "true"):
        status, output = run_workers(2, tmp_path, *command(
            model_folder, f"output_dir={tmp_path}/{name}", "parallel_config.skiparse_parallel=2",
            "parallel_config.parameter_shard=2", f"context.offload={name}"))
        assert status == 0, output[-4000:]
    together, in_turn = ((tmp_path / name / "video_0000.mp4").read_bytes() for name in ("false", "true"))
    assert in_turn == together


@pytest.mark.slow
def test_a_dead_worker_ends_the_job(model_folder, tmp_path):
    options = command(model_folder, f"output_dir={tmp_path}/output", "sampling.steps=1000",
                      "parallel_config.skiparse_parallel=2")
    job = subprocess.Popen(msrun_command(2, tmp_path / "logs", *options), env=environment(), cwd=ROOT,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        log, deadline = tmp_path / "logs" / "worker_0.log", time.monotonic() + 300
        while not (log.is_file() and " 2/1000" in log.read_text()):
            assert time.monotonic() < deadline, "no step within 300 s"
            time.sleep(0.5)
        workers = [child for child in psutil.Process(job.pid).children(recursive=True) if "generate" in child.cmdline()]
        victim = next(worker for worker in workers if worker.environ().get("RANK_ID") == "1")
        os.kill(victim.pid, signal.SIGKILL)
        status = job.wait(DEADLINE_SECONDS)
        assert status != 0
        gone, alive = psutil.wait_procs(workers, 5)
        assert not alive
        # No video, whole or half-written; the lock of a killed process holds nobody up.
        assert [path.name for path in (tmp_path / "output").iterdir()] in ([], [LOCK])
    finally:
        if job.poll() is None:
            end(job)
