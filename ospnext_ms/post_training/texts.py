"""Embeddings of all prompts of a run, made once before the transformer is loaded."""

import numpy as np

from ospnext_ms.generation.encoders import TextEncoder
from ospnext_ms.runtime import release_memory


def embed_texts(model, texts, runtime):
    """{text: embedding fp32 [text_len, text_dim]}, rows past a text's end zero (as Wan2.1)."""
    texts = list(dict.fromkeys(texts))
    encoder = TextEncoder(model.text_encoder, model.dit.text_len, runtime)
    embeddings = {}
    for text, rows in zip(texts, encoder(texts), strict=True):
        padded = np.zeros((model.dit.text_len, model.dit.text_dim), np.float32)
        padded[: len(rows)] = rows
        embeddings[text] = padded
    del encoder
    release_memory()
    return embeddings
