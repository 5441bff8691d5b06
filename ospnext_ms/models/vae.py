"""WanVAE, the causal 3-D autoencoder of Wan2.1 (arXiv 2503.20314): 8x8 in space, 4x in time.

Video is streamed: frames in chunks of 1, 4, 4, ... into the encoder, latent frames one at a time into the decoder, with
an explicit cache of past frames. Working memory beyond input and output does not depend on the number of frames.

Legend: B batch, z latent channels, F video frames, T latent frames, H/W video and h/w latent height and width.
"""

from fractions import Fraction

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ospnext_ms.kernels.convolution import CONVOLUTIONS, default_convolution
from ospnext_ms.kernels.slices import narrow
from ospnext_ms.models.config import VAEConfig
from ospnext_ms.models.sizes import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, check_frames, check_pixels
from ospnext_ms.models.vae_blocks import CausalConvolution, decoder, encoder
from ospnext_ms.models.vae_tiling import apply_tiled

__all__ = ["LATENT_MEAN", "LATENT_STD", "VAEConfig", "WanVAE"]

VIDEO_CHANNELS = 3
# Statistics of Wan2.1's latents, by channel.
LATENT_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
               0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
LATENT_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
              3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


class WanVAE(nn.Cell):
    """The autoencoder. Parameter names and shapes are those of the PyTorch checkpoint.

    Args:
        config: widths; z_dim must be 16, for which the latent statistics are known (ValueError otherwise).
        dtype: of convolutions and their weights (norms, latents and video are fp32). CPU: fp32 only.
        compile_chunks: run the chunk functions through ms.jit, two graphs each (first chunk, later chunks) for every
            frame size. On CPU a graph compiles in about 7 s and decoding then takes half to a third of the time, so it
            pays from a few videos of one size on.
        convolution: "native" or "gather" (see kernels.convolution); None takes what the device does best.
    """

    def __init__(self, config, dtype=ms.float32, compile_chunks=False, convolution=None):
        super().__init__()
        if config.z_dim != len(LATENT_MEAN):
            raise ValueError(f"vae.z_dim is {config.z_dim}; latent statistics are known for {len(LATENT_MEAN)} only")
        convolution = convolution or default_convolution()
        if convolution not in CONVOLUTIONS:
            raise ValueError(f"convolution is {convolution!r}; valid: {', '.join(map(repr, CONVOLUTIONS))}")
        self.config = config
        conv = dict(dtype=dtype, convolution=convolution)
        self.encoder = encoder(config.dim, 2 * config.z_dim, **conv)
        self.conv1 = CausalConvolution(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1), **conv)
        self.conv2 = CausalConvolution(config.z_dim, config.z_dim, (1, 1, 1), **conv)
        self.decoder = decoder(config.dim, config.z_dim, **conv)
        self.mean = Tensor(np.reshape(LATENT_MEAN, (1, -1, 1, 1, 1)), ms.float32)
        self.std = Tensor(np.reshape(LATENT_STD, (1, -1, 1, 1, 1)), ms.float32)
        self._encode_chunk = compiled(self.encode_chunk) if compile_chunks else self.encode_chunk
        self._decode_chunk = compiled(self.decode_chunk) if compile_chunks else self.decode_chunk

    def encode_chunk(self, video, cache):
        """One chunk of video and the cache -> its normalised latent mean and the next cache.

        video [B, 3, 1, H, W] with cache () to begin with, then [B, 3, 4, H, W] with the cache returned before; latent
        [B, z, 1, H/8, W/8] fp32. The cache is a flat tuple of tensors.
        """
        moments, cache = self.encoder(video, cache)
        mu = narrow(self.conv1(moments, ())[0], 1, 0, self.config.z_dim).astype(ms.float32)
        return (mu - self.mean) / self.std, cache

    def decode_chunk(self, latent, cache):
        """One normalised latent frame [B, z, 1, h, w] and the cache -> frames, not clamped, and the next cache.

        Frames [B, 3, n, 8h, 8w] fp32: n = 1 with cache () to begin with, then 4 with the cache returned before.
        """
        z = self.conv2(latent.astype(ms.float32) * self.std + self.mean, ())[0]
        frames, cache = self.decoder(z, cache)
        return frames.astype(ms.float32), cache

    def encode(self, video, tiling=None):
        """Video [B, 3, F, H, W] in [-1, 1] -> normalised latent mean [B, 16, (F - 1)/4 + 1, H/8, W/8] fp32.

        With a `Tiling`, larger frames are encoded tile after tile, each over all frames.

        Raises:
            ValueError: not 3 channels, F not 4k + 1, H or W not a multiple of 8.
        """
        check_video_shape(video.shape)
        if tiling is None:
            return self._encode_frames(video)
        return apply_tiled(self._encode_frames, video, tiling.tile_size, tiling.tile_overlap,
                           Fraction(1, SPATIAL_COMPRESSION))

    def decode(self, latent, tiling=None, map_tiles=map):
        """Normalised latent [B, 16, T, h, w] -> video [B, 3, 4 (T - 1) + 1, 8h, 8w] fp32, clamped to [-1, 1].

        With a `Tiling`, larger frames are decoded tile after tile, each over all frames; `map_tiles` see apply_tiled.

        Raises:
            ValueError: not 16 channels, or no frame.
        """
        check_latent_shape(latent.shape)
        if tiling is None:
            return self._decode_frames(latent)
        tile, overlap = tiling.tile_size // SPATIAL_COMPRESSION, tiling.tile_overlap // SPATIAL_COMPRESSION
        return apply_tiled(self._decode_frames, latent, tile, overlap, Fraction(SPATIAL_COMPRESSION), map_tiles)

    def decode_frames(self, latent):
        """As `decode`, yielding the frames as they come: [B, 3, 1, 8h, 8w] first, then [B, 3, 4, 8h, 8w] each."""
        check_latent_shape(latent.shape)
        return self._stream_frames(latent)

    def _stream_frames(self, latent):
        cache = ()
        for index in range(latent.shape[2]):
            frames, cache = self._decode_chunk(latent[:, :, index : index + 1], cache)
            yield ops.clamp(frames, -1.0, 1.0)

    def _decode_frames(self, latent):
        return ops.cat(list(self._stream_frames(latent)), 2)

    def _encode_frames(self, video):
        cache, latents, start = (), [], 0
        for stop in range(1, video.shape[2] + 1, TEMPORAL_COMPRESSION):
            latent, cache = self._encode_chunk(video[:, :, start:stop], cache)
            latents.append(latent)
            start = stop
        return ops.cat(latents, 2)


def compiled(chunk_function):
    """`chunk_function` (x, cache) -> (y, cache) through ms.jit, once for every shape of x and the cache."""
    compiled_function = ms.jit(chunk_function)

    def run(x, cache):
        # A plain tuple of tensors would be a constant of the graph, compiled anew for its values.
        return compiled_function(x, ms.mutable(cache) if cache else cache)

    return run


def check_video_shape(shape):
    """Raises ValueError, with the nearest valid values, unless `shape` is [B, 3, 4k + 1, 8a, 8b]."""
    if len(shape) != 5 or shape[1] != VIDEO_CHANNELS:
        raise ValueError(f"video has shape {tuple(shape)}; it must be [B, {VIDEO_CHANNELS}, F, H, W]")
    check_frames("a video's number of frames", shape[2])
    for name, size in (("height", shape[3]), ("width", shape[4])):
        check_pixels(f"a video's {name}", size)


def check_latent_shape(shape):
    """Raises ValueError unless `shape` is [B, 16, T, h, w] with nothing empty."""
    if len(shape) != 5 or shape[1] != len(LATENT_MEAN):
        raise ValueError(f"latent has shape {tuple(shape)}; it must be [B, {len(LATENT_MEAN)}, T, h, w]")
    if min(shape) < 1:
        raise ValueError(f"latent has shape {tuple(shape)}; every dimension must be at least 1")
