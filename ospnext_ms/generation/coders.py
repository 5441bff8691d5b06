"""What stands around the transformer, as functions of NumPy arrays: clips and captions in, frames out.

F frames, T/h/w latent frames, height and width, L text tokens, C text width.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ospnext_ms.build import build_text_encoder, build_vae
from ospnext_ms.data.text import Tokenizer, pad_text
from ospnext_ms.models.sizes import latent_frames
from ospnext_ms.runtime import release_memory

# Texts a call; always as many, because another number would be another graph.
TEXT_BATCH = 8


class ClipEncoder:
    """Frames uint8 [F, H, W, 3] -> normalised latent mean, NumPy fp32 [16, T, h, w], one clip a call.

    Args:
        section: VAESection. runtime: runtime.Runtime.

    Raises FloatingPointError where a latent is not finite.
    """

    def __init__(self, section, runtime):
        self._vae = build_vae(section, runtime.compiled)
        self._checkpoint = section.checkpoint
        self._tiling = section.tiling

    def __call__(self, frames_FHWC):
        video = frames_FHWC.transpose(3, 0, 1, 2)[None].astype(np.float32) / 127.5 - 1
        latent = self._vae.encode(Tensor(video), self._tiling).asnumpy()[0]
        if not np.isfinite(latent).all():
            raise FloatingPointError(f"the VAE {self._checkpoint} gives latents that are not finite")
        return latent


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

    def __call__(self, latent, frames=None):
        """The first `frames` frames, all of them without; later latents are not decoded."""
        latents = latent.shape[1] if frames is None else latent_frames(frames)
        z = Tensor(np.ascontiguousarray(latent[None, :, :latents], np.float32))
        chunks = self._vae.decode_frames(z) if self._tiling is None else [
            self._vae.decode(z, self._tiling, self._map_tiles)]
        return np.concatenate([to_uint8(chunk.asnumpy()[0]) for chunk in chunks])


def to_uint8(video_CFHW):
    """Frames uint8 [F, H, W, 3] of a video [3, F, H, W] in [-1, 1]; what lies outside is clipped."""
    return np.clip(np.rint((video_CFHW.transpose(1, 2, 3, 0) + 1) * 127.5), 0, 255).astype(np.uint8)


class TextEncoder:
    """Captions -> list of embeddings, NumPy fp32 [length, C], without the rows of padding.

    Args:
        section: TextEncoderSection. text_len: L, most tokens of a text. runtime: runtime.Runtime. batch: texts a call.

    Raises:
        ValueError: a tokenizer whose ids the encoder does not have.
        FloatingPointError: an embedding is not finite.
    """

    def __init__(self, section, text_len, runtime, batch=TEXT_BATCH):
        self._section = section
        self._tokenizer = Tokenizer(section.tokenizer, text_len)
        self._batch = batch
        self._net = runtime.compile(build_text_encoder(section, runtime))

    def __call__(self, captions):
        embeddings = []
        for start in range(0, len(captions), self._batch):
            part = list(captions[start : start + self._batch])
            embeddings += self._encode(part + part[-1:] * (self._batch - len(part)))[: len(part)]
        return embeddings

    def _encode(self, captions):
        ids, mask = token_ids(self._section, self._tokenizer, captions)
        rows_BLC = self._net(Tensor(ids), Tensor(mask)).astype(ms.float32).asnumpy()
        if not np.isfinite(rows_BLC).all():
            raise FloatingPointError(f"the text encoder {self._section.checkpoint} gives values that are not finite")
        return [rows[: length] for rows, length in zip(rows_BLC, mask.sum(1), strict=True)]


def embed_texts(model, texts, runtime):
    """{text: embedding fp32 [L, C], padded with zeros} by the text encoder of a `model` section, which is freed again.

    To be called before other networks are compiled (see runtime.release_memory). Raises as TextEncoder.
    """
    texts, text_len = list(dict.fromkeys(texts)), model.dit.text_len
    encode = TextEncoder(model.text_encoder, text_len, runtime)
    embeddings = {text: pad_text(rows, text_len) for text, rows in zip(texts, encode(texts), strict=True)}
    del encode
    release_memory()
    return embeddings


def token_ids(section, tokenizer, captions):
    """(ids, mask), int32 [B, L] each; ValueError for ids that the encoder of a TextEncoderSection does not have."""
    ids, mask = tokenizer(captions)
    if ids.max() >= section.vocab_size:
        raise ValueError(f"the tokenizer {section.tokenizer} gives the id {ids.max()}, but text_encoder.vocab_size is "
                         f"{section.vocab_size}")
    return ids, mask
