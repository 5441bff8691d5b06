"""prepare-data killed at random moments, in processes of its own: it always goes on, and ends with the same cache."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from ospnext_ms.data import cache
from tests.support.paths import ROOT
from tests.support.videos import write_counting

VIDEOS, KILLS = 12, 3

# Networks that cost nothing and need no framework, so that a start takes a second.
PROGRAM = """
import sys
import time
import types

import numpy as np


class Clips:
    def __init__(self, section, runtime):
        pass

    def __call__(self, frames):
        time.sleep(0.02)
        return np.repeat(frames[::4, ::8, ::8].mean(3, dtype=np.float32)[None], 16, 0)


class Texts:
    def __init__(self, section, text_len, runtime):
        pass

    def __call__(self, captions):
        time.sleep(0.02)
        return [np.full((3, 16), len(caption), np.float32) for caption in captions]


def nothing(*arguments):
    return None


sys.modules["ospnext_ms.generation.coders"] = types.SimpleNamespace(ClipEncoder=Clips, TextEncoder=Texts)
sys.modules["ospnext_ms.runtime"] = types.SimpleNamespace(start=nothing, release_memory=nothing)
if __name__ == "__main__":
    from ospnext_ms.__main__ import main
    sys.exit(main(["prepare-data", "--config", sys.argv[1], "--set", "output_dir=" + sys.argv[2]]))
"""


@pytest.fixture
def files(tmp_path):
    """(program, configuration) of a run over 12 videos in shards of one."""
    for i in range(VIDEOS):
        write_counting(tmp_path / f"{i}.mp4", count=9, fps=8, height=32, width=48)
    (tmp_path / "manifest.jsonl").write_text(
        "\n".join(f'{{"path": "{i}.mp4", "caption": "{"x" * (i + 1)}"}}' for i in range(VIDEOS)))
    for name in ("vae", "text_encoder"):
        cache.write_texts(tmp_path / f"{name}.safetensors", [], [])
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "run.yaml").write_text(f"""
run_mode: prepare_data
model:
  vae: {{dim: 4, checkpoint: {tmp_path}/vae.safetensors}}
  text_encoder: {{vocab_size: 8, dim: 16, ffn_dim: 8, num_heads: 1, num_layers: 1, tokenizer: {tmp_path}/tokenizer,
                 checkpoint: {tmp_path}/text_encoder.safetensors}}
  text_len: 12
manifest: {tmp_path}/manifest.jsonl
workers: 1
clips: {{fps: 8, buckets: [[32, 48, 5]]}}
cache: {{entries_per_shard: 1}}
output_dir: nowhere
""")
    return tmp_path / "program.py", tmp_path / "run.yaml"


def start(files, folder, **options):
    return subprocess.Popen([sys.executable, *files, folder], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*.safetensors")}


def test_killed_at_random_moments(files, tmp_path):
    whole = start(files, tmp_path / "whole")
    assert whole.wait() == 0, whole.stderr.read()
    expected, folder = shards(tmp_path / "whole"), tmp_path / "killed"
    rng = random.Random(0)
    done = 0
    for _ in range(KILLS):
        process = start(files, folder)
        while len(shards(folder)) == done:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.06))
        process.kill()
        process.wait()
        found = shards(folder)
        # Whatever stands under a final name is complete, and nothing was lost.
        assert all(expected[name] == content for name, content in found.items())
        assert len(found) > done
        done = len(found)
        assert done < len(expected)
        with pytest.raises(FileNotFoundError, match="is not finished"):
            cache.Cache(folder)
    last = start(files, folder)
    assert last.wait() == 0, last.stderr.read()
    assert shards(folder) == expected
    assert (folder / cache.INDEX).read_bytes() == (tmp_path / "whole" / cache.INDEX).read_bytes()
    assert len(cache.Cache(folder).samples) == VIDEOS


def test_ctrl_c_is_a_line_and_the_same_command_goes_on(files, tmp_path):
    process = start(files, tmp_path / "cache", start_new_session=True, text=True)
    while not shards(tmp_path / "cache"):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    # As a terminal does: to the process and all it has started.
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "SIGINT: ended"
    assert "Traceback" not in err
    last = start(files, tmp_path / "cache")
    assert last.wait() == 0, last.stderr.read()
    assert len(cache.Cache(tmp_path / "cache").samples) == VIDEOS
