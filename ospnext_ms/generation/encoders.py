"""The networks that turn clips and captions into what the transformer is trained on.

F frames, T/h/w latent frames, height and width, L text tokens, C text width.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters

from ospnext_ms.data.text import Tokenizer
from ospnext_ms.models.umt5 import UMT5Encoder
from ospnext_ms.models.vae import Tiling, WanVAE
from ospnext_ms.storage.weights import load_weights

# Texts a call; always as many, because another number would be another graph.
TEXT_BATCH = 8


class ClipEncoder:
    """Frames uint8 [F, H, W, 3] -> normalised latent mean, NumPy fp32 [16, T, h, w], one clip a call.

    Args:
        section: VAESection. runtime: runtime.Runtime; the VAE computes in fp32 whatever its dtype.

    Raises FloatingPointError where a latent is not finite.
    """

    def __init__(self, section, runtime):
        with no_init_parameters():
            self._vae = WanVAE(section, ms.float32, compile_chunks=runtime.compiled)
        load_weights(self._vae, section.checkpoint)
        self._vae.set_train(False)
        self._checkpoint = section.checkpoint
        self._tiling = None if section.tile_size is None else Tiling(section.tile_size, section.tile_overlap)

    def __call__(self, frames_FHWC):
        video = frames_FHWC.transpose(3, 0, 1, 2)[None].astype(np.float32) / 127.5 - 1
        latent = self._vae.encode(Tensor(video), self._tiling).asnumpy()[0]
        if not np.isfinite(latent).all():
            raise FloatingPointError(f"the VAE {self._checkpoint} gives latents that are not finite")
        return latent


class TextEncoder:
    """Captions -> list of embeddings, NumPy fp32 [length, C], without the rows of padding.

    Args:
        section: TextEncoderSection. text_len: L, most tokens of a text. runtime: runtime.Runtime.

    Raises:
        ValueError: a tokenizer whose ids the encoder does not have.
        FloatingPointError: an embedding is not finite.
    """

    def __init__(self, section, text_len, runtime):
        self._section = section
        self._tokenizer = Tokenizer(section.tokenizer, text_len)
        with no_init_parameters():
            net = UMT5Encoder(section, runtime.dtype)
        load_weights(net, section.checkpoint)
        net.set_train(False)
        self._net = runtime.compile(net)

    def __call__(self, captions):
        embeddings = []
        for start in range(0, len(captions), TEXT_BATCH):
            batch = list(captions[start : start + TEXT_BATCH])
            embeddings += self._encode(batch + batch[-1:] * (TEXT_BATCH - len(batch)))[: len(batch)]
        return embeddings

    def _encode(self, captions):
        ids, mask = self._tokenizer(captions)
        if ids.max() >= self._section.vocab_size:
            raise ValueError(f"the tokenizer {self._section.tokenizer} gives the id {ids.max()}, but "
                             f"text_encoder.vocab_size is {self._section.vocab_size}")
        rows_BLC = self._net(Tensor(ids), Tensor(mask)).astype(ms.float32).asnumpy()
        if not np.isfinite(rows_BLC).all():
            raise FloatingPointError(f"the text encoder {self._section.checkpoint} gives values that are not finite")
        return [rows[: length] for rows, length in zip(rows_BLC, mask.sum(1), strict=True)]
