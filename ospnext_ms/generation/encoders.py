"""What turns clips and captions into what the transformer works on.

F frames, T/h/w latent frames, height and width, L text tokens, C text width.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ospnext_ms.build import build_text_encoder, build_vae
from ospnext_ms.data.text import Tokenizer

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


def token_ids(section, tokenizer, captions):
    """(ids, mask), int32 [B, L] each; ValueError for ids that the encoder of a TextEncoderSection does not have."""
    ids, mask = tokenizer(captions)
    if ids.max() >= section.vocab_size:
        raise ValueError(f"the tokenizer {section.tokenizer} gives the id {ids.max()}, but text_encoder.vocab_size is "
                         f"{section.vocab_size}")
    return ids, mask
