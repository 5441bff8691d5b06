"""Against upstream's own package: its suite, its look-up by name, and a dimension it scores.

Its wheel is fetched (0.4 MB), or OSPNEXT_VBENCH_WHEEL names it; scoring needs an environment made by scripts/vbench.sh,
whose interpreter OSPNEXT_VBENCH_PYTHON names.
"""

import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ospnext_ms.data.video import read_video, write_mp4
from ospnext_ms.evaluation.vbench import upstream
from ospnext_ms.evaluation.vbench.dimensions import DIMENSIONS
from ospnext_ms.evaluation.vbench.results import merge, read_results
from ospnext_ms.evaluation.vbench.score import VERSION, score
from ospnext_ms.evaluation.vbench.suite import read_suite, suite_videos, videos_looked_up

pytestmark = pytest.mark.slow
# What its look-up imports and does not use.
STUBS = """
import runpy, sys
from unittest.mock import MagicMock
for name in ("torch", "torch.distributed", "decord", "torchvision", "torchvision.transforms", "PIL"):
    sys.modules[name] = MagicMock()
sys.modules["torch"].distributed.is_initialized.return_value = False
sys.path.insert(0, sys.argv.pop(1))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder that upstream's wheel is unpacked into."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = os.environ.get("OSPNEXT_VBENCH_WHEEL")
    if wheel is None:
        done = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"vbench=={VERSION}",
                               "--dest", str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the wheel vbench {VERSION} cannot be fetched ({done.stderr.strip()[-200:]}); "
                        "OSPNEXT_VBENCH_WHEEL may name it")
        [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def suite(package):
    return package / "vbench" / "VBench_full_info.json"


def test_the_official_suite(suite):
    entries = read_suite(suite)
    texts = Counter(entry.prompt for entry in entries)
    assert (len(entries), len(texts), sum(count - 1 for count in texts.values())) == (946, 944, 2)
    assert {"a fantasy landscape", "A fantasy landscape"} <= set(texts)
    assert Counter(name for entry in entries for name in entry.dimensions) == {
        name: dimension.prompts for name, dimension in DIMENSIONS.items()}
    videos = suite_videos(entries, 666)
    assert len(videos) == len({video.name for video in videos}) == len({video.seed for video in videos}) == 4720
    assert len(suite_videos(entries, 666, dimensions=["temporal_flickering"])) == 75 * 25


def test_upstream_finds_every_video_by_name(package, suite, tmp_path):
    """Its look-up prints a warning for each name that it does not find."""
    entries = read_suite(suite)
    videos = tmp_path / "videos"
    videos.mkdir()
    for video in suite_videos(entries, 666):
        (videos / f"{video.name}.mp4").touch()
    find = [upstream.__file__, "find", str(suite), str(videos), str(tmp_path / "out"), "all", *DIMENSIONS]
    command = [sys.executable, "-c", STUBS, str(package), *find]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "WARNING" not in done.stdout
    found = json.loads((tmp_path / "out" / "all_full_info.json").read_text())
    assert len(found) == 946
    assert [len(entry["video_list"]) for entry in found] == [5] * 946
    names = {Path(path).name for entry in found for path in entry["video_list"]}
    assert names == {path.name for path in videos.iterdir()}
    assert len(names) == 4720
    for dimension in DIMENSIONS:
        of_one = {Path(path).name for entry in found if dimension in entry["dimension"] for path in entry["video_list"]}
        assert of_one == set(videos_looked_up(entries, dimension))
    (videos / "A fantasy landscape-2.mp4").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("WARNING") == 1


def test_temporal_flickering_is_scored(tmp_path):
    """10 videos of noise of different strengths; the score is 1 - mean |difference of neighbouring frames| / 255."""
    python = os.environ.get("OSPNEXT_VBENCH_PYTHON")
    if python is None:
        pytest.skip("OSPNEXT_VBENCH_PYTHON names no interpreter with upstream's package; scripts/vbench.sh makes one")
    prompts = ["a still lake", "A still lake"]
    suite = tmp_path / "suite.json"
    suite.write_text(json.dumps([{"prompt_en": prompt, "dimension": ["temporal_flickering"]} for prompt in prompts]))
    videos, random, expected = tmp_path / "videos", np.random.default_rng(0), []
    videos.mkdir()
    for i, video in enumerate(suite_videos(read_suite(suite), 0)):
        frames = np.clip(128 + 4 * i * random.standard_normal((9, 32, 48, 1)), 0, 255).astype(np.uint8).repeat(3, 3)
        write_mp4(videos / f"{video.name}.mp4", frames, 8, 18)
        seen = read_video(videos / f"{video.name}.mp4").astype(np.float64)
        expected.append(1 - np.abs(np.diff(seen, axis=0)).mean() / 255)
    assert score(videos, python, tmp_path / "out", suite=suite, dimensions=["temporal_flickering"], device="cpu") == []
    [file] = read_results(tmp_path / "out")
    assert file.videos == {"temporal_flickering": 10}
    assert merge([file])["temporal_flickering"] == pytest.approx(np.mean(expected), abs=2e-3)
    assert np.ptp(expected) > 0.02
