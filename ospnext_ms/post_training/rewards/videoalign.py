"""VideoAlign (KwaiVGI/VideoAlign, arXiv 2501.13918): visual quality, motion quality, text alignment.

A PyTorch model of 2 billion parameters with code of its own; nothing of either is part of this package. It runs in an
environment of its own, named by the reward section's `python`. Not tried with its weights here: what is tested is what
this file hands over and what it says when something is missing.
"""

import importlib
import sys
import tempfile
from pathlib import Path

FETCH = ("fetch the repository KwaiVGI/VideoAlign from GitHub as `code` and the weights KwaiVGI/VideoReward from "
         "Hugging Face as `checkpoint`, and install its requirements into the environment that `python` names")
PARTS = ("VQ", "MQ", "TA")


class VideoAlign:
    """score = VQ + MQ + TA by default, normalised as its authors do; each is a part.

    Args:
        checkpoint: folder with model_config.json and the weights. code: folder of the repository, with inference.py.
        weights: of VQ, MQ and TA in the score. fps: of the frames. device: of PyTorch.

    Raises:
        ValueError: not three weights. FileNotFoundError, ImportError: the weights, the code or a package that it needs
            is missing, with what to fetch.
    """

    def __init__(self, checkpoint, code, weights=(1.0, 1.0, 1.0), fps=16, device="cuda"):
        if len(weights) != len(PARTS):
            raise ValueError(f"weights is {list(weights)}; it must be three numbers, for {', '.join(PARTS)}")
        for name, folder, file in (("checkpoint", checkpoint, "model_config.json"), ("code", code, "inference.py")):
            if not (Path(folder) / file).is_file():
                raise FileNotFoundError(f"VideoAlign's {name} is not in {Path(folder).absolute()} ({file} is missing): "
                                        + FETCH)
        self.weights, self.fps = weights, fps
        # The repository is no package: its modules import one another by their bare names.
        sys.path.insert(0, str(Path(code).absolute()))
        try:
            inference = importlib.import_module("inference")
        except ImportError as error:
            raise ImportError(f"VideoAlign's code needs a package that is not here ({error}): {FETCH}") from error
        self._model = inference.VideoVLMRewardInference(str(checkpoint), device=device)

    def __call__(self, frames, prompts):
        from ospnext_ms.data.video import write_mp4

        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder) / f"{i}.mp4") for i in range(len(frames))]
            for path, video in zip(paths, frames, strict=True):
                write_mp4(path, video, self.fps, crf=10)
            rewards = self._reward(paths, list(prompts))
        parts = {part: [float(reward[part]) for reward in rewards] for part in PARTS}
        scores = [sum(weight * float(reward[part]) for weight, part in zip(self.weights, PARTS, strict=True))
                  for reward in rewards]
        return scores, parts

    def _reward(self, paths, prompts):
        import torch

        with torch.no_grad():
            return self._model.reward(paths, prompts, use_norm=True)
