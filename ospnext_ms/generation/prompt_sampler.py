"""Latents of prompts from a network as it stands, in batches of one size."""

import numpy as np
from mindspore import Tensor


class PromptSampler:
    """Prompts and noise in, latents out. B of a batch, L text tokens, C text width.

    Args:
        follow: callable (noise [B, ...], text [B, L, C], negative [B, L, C]) -> latents [B, ...], all tensors in fp32.
        texts: {text: embedding fp32 [L, C]}. negative_prompt: one of them.
        batch_size: B; smaller batches are filled up, so that one graph serves all.
    """

    def __init__(self, follow, texts, negative_prompt, batch_size):
        self._follow, self._texts, self._negative = follow, texts, negative_prompt
        self._batch_size = batch_size

    def __call__(self, prompts, noise):
        """Latents fp32 [n, ...] of n prompts; `noise`: function from a prompt's place in the list to fp32 [...]."""
        latents = []
        for rows in batches(len(prompts), self._batch_size):
            members = filled(rows, self._batch_size)
            text = Tensor(np.stack([self._texts[prompts[i]] for i in members]))
            negative = Tensor(np.stack([self._texts[self._negative]] * len(members)))
            sample = self._follow(Tensor(np.stack([noise(i) for i in members])), text, negative)
            latents.append(sample.asnumpy()[: len(rows)])
        return np.concatenate(latents)


def batches(count, size):
    """range(count) cut into ranges of at most `size`."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def filled(rows, size):
    """The rows of a batch, its last one repeated until there are `size`."""
    return [*rows, *[rows[-1]] * (size - len(rows))]
