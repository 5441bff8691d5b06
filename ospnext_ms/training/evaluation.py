"""The loss on a fixed set of clips, noise and noise levels: comparable between steps, runs and models."""

from statistics import NormalDist

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ospnext_ms.data.latents import LatentDataset
from ospnext_ms.diffusion.flow import training_sigmas
from ospnext_ms.kernels.collectives import AllGather
from ospnext_ms.training.inputs import flow_shift, unshifted_sigma

_NOISE = 20


class FixedSet:
    """The clips, noise and noise levels of an EvalDatasetSection.

    Each clip is taken at `sigmas` levels, the quantiles (j + 1/2) / sigmas of the training distribution, with noise of
    its own for each, and with its first caption; prompts are not dropped.

    Args:
        section: EvalDatasetSection. flow: FlowSection. dit: DiTConfig. mesh: parallel.mesh.Mesh.
        encode: needed where the cache holds videos.

    Raises:
        FileNotFoundError, ValueError: no finished cache, or fewer clips in it than asked for.
    """

    def __init__(self, section, flow, dit, mesh, encode=None):
        self.section = section
        self.flow = flow
        self.patch_size = dit.patch_size
        self.mesh = mesh
        self.dataset = LatentDataset(section.path, batch_size=1, seed=section.seed, text_len=dit.text_len,
                                     encode=encode)
        if section.clips > len(self.dataset):
            raise ValueError(f"eval_dataset.clips is {section.clips}, but {section.path} holds {len(self.dataset)}")
        self._gather = AllGather(mesh.world_group)

    def inputs(self, clip):
        """(x0, noise, sigma, text) of a clip at all its noise levels: batches of `sigmas` samples, fp32."""
        count = self.section.sigmas
        latent, text, _ = self.dataset.sample(clip)
        shift = flow_shift(self.flow, latent.shape[2:], self.patch_size)
        normal = np.array([NormalDist().inv_cdf((j + 0.5) / count) for j in range(count)])
        sigma = training_sigmas(unshifted_sigma(self.flow, normal), shift).astype(np.float32)
        rng = np.random.default_rng([self.section.seed, clip, _NOISE])
        noise = rng.standard_normal((count, *latent.shape), np.float32)
        return np.stack([latent] * count), noise, sigma, np.stack([text] * count)

    def mean_loss(self, loss):
        """Mean over the set of `loss`, a callable from the inputs to a scalar tensor. All processes have to call it."""
        mine = range(self.mesh.data_rank, self.section.clips, self.mesh.data_size)
        losses = [float(loss(*map(Tensor, self.inputs(clip)))) for clip in mine]
        if self.mesh.size == 1:
            return float(np.mean(losses))
        table = Tensor(np.array([[sum(losses), len(losses)]]), ms.float32)
        total, count = self._gather(table, "evaluation").asnumpy().astype(np.float64).sum(0)
        return float(total / count)
