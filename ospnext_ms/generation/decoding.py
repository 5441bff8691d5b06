"""Latents -> frames."""

import numpy as np
from mindspore import Tensor

from ospnext_ms.build import build_vae
from ospnext_ms.models.sizes import latent_frames


class FrameDecoder:
    """Normalised latent [16, T, h, w] -> frames uint8 [F, H, W, 3], one video a call.

    Args:
        section: VAESection. compile_chunks: see models.vae.WanVAE. map_tiles: as the builtin `map`, where the tiles of
            a section with tiling are not all computed here (see generation.team.SpreadTiles).
    """

    def __init__(self, section, compile_chunks, map_tiles=map):
        self._vae = build_vae(section, compile_chunks)
        self._tiling = section.tiling
        self._map_tiles = map_tiles

    def __call__(self, latent, frames=None, on_frames=lambda count: None):
        """The first `frames` frames, all of them without; later latents are not decoded. `on_frames` gets the numbers
        of frames as they are done."""
        latents = latent.shape[1] if frames is None else latent_frames(frames)
        z = Tensor(np.ascontiguousarray(latent[None, :, :latents], np.float32))
        chunks = self._vae.decode_frames(z) if self._tiling is None else [
            self._vae.decode(z, self._tiling, self._map_tiles)]
        done = []
        for chunk in chunks:
            done.append(to_uint8(chunk.asnumpy()[0]))
            on_frames(len(done[-1]))
        return np.concatenate(done)


def to_uint8(video_CFHW):
    """Frames uint8 [F, H, W, 3] of a video [3, F, H, W] in [-1, 1]; what lies outside is clipped."""
    return np.clip(np.rint((video_CFHW.transpose(1, 2, 3, 0) + 1) * 127.5), 0, 255).astype(np.uint8)
