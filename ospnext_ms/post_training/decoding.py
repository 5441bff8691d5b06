"""Latents of a rollout -> frames for the rewards."""

import numpy as np
from mindspore import Tensor, float32
from mindspore.nn.utils import no_init_parameters

from ospnext_ms.generation.text_to_video import to_uint8
from ospnext_ms.models.vae import Tiling, WanVAE
from ospnext_ms.storage.weights import load_weights


class FrameDecoder:
    """Latent [16, T, h, w] -> frames uint8 [F, H, W, 3], one video a call; the VAE computes in fp32, as it serves.

    Args:
        section: VAESection. runtime: runtime.Runtime.
    """

    def __init__(self, section, runtime):
        with no_init_parameters():
            self._vae = WanVAE(section, float32, compile_chunks=runtime.compiled)
        load_weights(self._vae, section.checkpoint)
        self._vae.set_train(False)
        self._tiling = None if section.tile_size is None else Tiling(section.tile_size, section.tile_overlap)

    def __call__(self, latent, frames=None):
        """The first `frames` frames, all of them without; later latents are not decoded."""
        latents = latent.shape[1] if frames is None else (frames - 1) // 4 + 1
        z = Tensor(np.ascontiguousarray(latent[None, :, :latents]))
        chunks = self._vae.decode_frames(z) if self._tiling is None else [self._vae.decode(z, self._tiling)]
        return np.concatenate([to_uint8(chunk.asnumpy()[0]) for chunk in chunks])
