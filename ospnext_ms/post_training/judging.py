"""From latents to the rewards of all processes' videos."""

import json

import numpy as np
from mindspore import Tensor

from ospnext_ms.generation.prompt_sampler import batches
from ospnext_ms.kernels.collectives import AllGather
from ospnext_ms.parallel.messages import GatherTexts
from ospnext_ms.post_training.rewards.combined import Scores

# NaN survives no sum of slots, so it travels as a number no reward may have.
_NO_REWARD = -3e38


class Judge:
    """Decodes videos and asks the rewards about them. The processes that share a video have one leader, which does it.

    Args:
        mesh: parallel.mesh.Mesh. decoder: generation.decoding.FrameDecoder, used on leaders only.
        reward: CombinedReward, started on leaders. batch_size: videos a question.
    """

    def __init__(self, mesh, decoder, reward, batch_size):
        self._mesh, self._decoder, self._reward = mesh, decoder, reward
        self._batch_size = batch_size
        self._gather = AllGather(mesh.world_group)
        self._gather_texts = GatherTexts(mesh.world_group, "the names of rewards and their parts")

    def submit(self, latents, prompts, frames):
        """Decodes the first `frames` frames of latents [n, 16, T, h, w] (None: all) and asks; functions that wait."""
        if not self._mesh.is_leader:
            return []
        waiting = []
        for rows in batches(len(prompts), self._batch_size):
            clips = np.stack([self._decoder(latents[row], frames) for row in rows])
            waiting.append(self._reward.submit(clips, [prompts[row] for row in rows]))
        return waiting

    def gather(self, waiting, count):
        """The Scores of all processes' videos, in the order of ranks, on every process.

        `waiting`: of `submit`. `count`: videos of each process.

        Raises:
            ValueError: names of parts that are too long to be told to the other processes.
            RewardError: see CombinedReward.submit.
        """
        mine = Scores.joined(wait() for wait in waiting) if self._mesh.is_leader else None
        if self._mesh.size == 1:
            return mine
        rewards = [section.name for section in self._reward.sections]
        # Of all processes: a reward that failed on one of them has no parts there.
        told = self._gather_texts(json.dumps(list(mine.parts) if mine is not None else []))
        names = list(dict.fromkeys(name for names in told for name in json.loads(names)))
        rows = np.zeros((1, 1 + len(names) + len(rewards), count), np.float64)
        if mine is not None:
            rows[0, 0] = mine.total
            rows[0, 1 : 1 + len(names)] = [mine.parts.get(name, np.full(count, np.nan)) for name in names]
            rows[0, 1 + len(names) :, 0] = [mine.failed[name] for name in rewards]
        sent = Tensor(np.nan_to_num(rows, nan=_NO_REWARD).astype(np.float32))
        received = self._gather(sent, "rewards").asnumpy().astype(np.float64)
        leaders = received[:: self._mesh.video_group.size]
        values = np.where(leaders == np.float32(_NO_REWARD), np.nan, leaders)
        joined = values.transpose(1, 0, 2).reshape(values.shape[1], -1)
        failed = values[:, 1 + len(names) :, 0].sum(0).astype(int)
        return Scores(joined[0], dict(zip(names, joined[1:], strict=False)),
                      {name: int(n) for name, n in zip(rewards, failed, strict=True)}, mine.messages if mine else ())
