"""The VideoAlign adapter: what is missing is said, and what it hands over is what VideoAlign's code expects."""

import sys

import numpy as np
import pytest

from ospnext_ms.post_training.rewards.process import RewardError, RewardProcess
from ospnext_ms.post_training.rewards.videoalign import VideoAlign

FRAMES = np.full((2, 5, 32, 48, 3), 90, np.uint8)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """(checkpoint, code) as far as the adapter looks at them."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model_config.json").write_text("{}")
    (tmp_path / "code").mkdir()
    source = "from tests.post_training.scorers import VideoAlignStandIn as VideoVLMRewardInference\n"
    (tmp_path / "code" / "inference.py").write_text(source)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "inference", raising=False)
    yield tmp_path / "weights", tmp_path / "code"
    sys.modules.pop("inference", None)


@pytest.mark.framework
def test_scores_and_what_is_handed_over(folders):
    reward = VideoAlign(*map(str, folders), weights=[1.0, 0.5, 0.0], device="cpu")
    scores, parts = reward(FRAMES, ["one", "two"])
    assert scores == [6.0, 7.0]
    assert parts == {"VQ": [1.0, 2.0], "MQ": [10.0, 10.0], "TA": [100.0, 100.0]}
    model = reward._model
    assert (model.made_from, model.device, model.use_norm) == (str(folders[0]), "cpu", True)
    assert model.prompts == ["one", "two"]
    assert [video.shape for video in model.videos] == [(5, 32, 48, 3)] * 2
    assert np.abs(model.videos[0].astype(int) - 90).max() <= 3


def test_missing_weights_are_an_error_that_says_what_to_fetch(tmp_path):
    process = RewardProcess("videoalign", "ospnext_ms.post_training.rewards.videoalign:VideoAlign",
                            {"checkpoint": str(tmp_path / "nothing"), "code": str(tmp_path)})
    with pytest.raises(RewardError, match=r"checkpoint is not in .*nothing.*KwaiVGI/VideoReward"):
        process.start()
    process.close()


@pytest.mark.framework
def test_missing_code_and_packages(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"code is not in .*inference.py is missing.*KwaiVGI/VideoAlign"):
        VideoAlign(str(folders[0]), str(tmp_path))
    (folders[1] / "inference.py").write_text("import no_such_package\n")
    with pytest.raises(ImportError, match="needs a package that is not here.*no_such_package"):
        VideoAlign(*map(str, folders))


def test_weights_of_the_parts():
    with pytest.raises(ValueError, match="weights is .* three numbers"):
        VideoAlign("a", "b", weights=[1.0])
