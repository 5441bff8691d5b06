"""Rewards for tests; run in the rewards' processes."""

import os
import time
from pathlib import Path

import numpy as np

from ospnext_ms.data.video import read_video


class Brightness:
    """Mean grey level of a video, 0 to 1."""

    def __call__(self, frames, prompts):
        scores = frames.reshape(len(frames), -1).mean(1) / 255
        return scores, {"level": scores}


class Faulty:
    """Brightness that goes wrong: `how` is raise, hang, crash, nan, short, constant or list; `times` (a file counts).

    fork: a child process lives on while it hangs; orphan: while it crashes; daemon: in a session of its own.
    """

    def __init__(self, how, counter=None, times=None):
        self.how, self.times = how, times
        self.counter = Path(counter) if counter else None

    def __call__(self, frames, prompts):
        scores, parts = Brightness()(frames, prompts)
        done = len(self.counter.read_text()) if self.counter and self.counter.exists() else 0
        if self.times is not None and done >= self.times:
            return scores, parts
        if self.counter:
            self.counter.write_text("x" * (done + 1))
        if self.how == "raise":
            raise ZeroDivisionError("the reward's own mistake")
        if self.how in ("fork", "orphan", "daemon"):
            self._leave_a_child()
        if self.how in ("hang", "fork"):
            time.sleep(600)
        if self.how in ("crash", "orphan", "daemon"):
            os.abort()
        if self.how == "nan":
            scores[0] = np.nan
        if self.how == "short":
            scores = scores[:-1]
        if self.how == "constant":
            scores = np.full(len(frames), 0.5)
        if self.how == "list":
            return list(scores)
        return scores, parts

    def _leave_a_child(self):
        child = os.fork()
        if child:
            self.counter.with_suffix(".pid").write_text(str(child))
            return
        if self.how == "daemon":
            os.setsid()
        time.sleep(600 if self.how != "daemon" else 20)
        os._exit(0)


class Unmakeable:
    """Cannot be made."""

    def __init__(self):
        raise FileNotFoundError("no weights in checkpoints/reward")


class VideoAlignStandIn:
    """Has the interface of VideoAlign's inference.VideoVLMRewardInference (commit 1140ffd of its repository)."""

    def __init__(self, load_from_pretrained, load_from_pretrained_step=-1, device="cuda", dtype=None):
        self.made_from, self.device = load_from_pretrained, device

    def reward(self, video_paths, prompts, fps=None, num_frames=None, max_pixels=None, use_norm=True):
        self.videos = [read_video(path) for path in video_paths]
        self.prompts, self.use_norm = prompts, use_norm
        return [{"VQ": 1.0 + i, "MQ": 10.0, "TA": 100.0, "Overall": 111.0 + i} for i in range(len(prompts))]
