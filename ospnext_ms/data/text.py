"""Prompts: cleaning and tokenizing. B batch, L = text_len."""

import html
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG_FILE = "tokenizer_config.json"
VOCABULARY_FILES = ("tokenizer.json", "spiece.model")


def clean_prompt(text: str) -> str:
    """Text as Wan2.1 cleans it: broken Unicode repaired, HTML entities resolved, white space collapsed and stripped."""
    # Here, because embeddings made elsewhere are read where it is not installed.
    import ftfy

    text = ftfy.fix_text(text)
    # Twice, as captions from the web are often escaped twice (&amp;quot;).
    text = html.unescape(html.unescape(text))
    return " ".join(text.split())


def pad_text(rows: np.ndarray, text_len: int) -> np.ndarray:
    """Embedding [length, C] -> fp32 [text_len, C], the rows past its end zero (as Wan2.1 feeds it)."""
    padded_LC = np.zeros((text_len, rows.shape[1]), np.float32)
    padded_LC[: len(rows)] = rows
    return padded_LC


class Tokenizer:
    """Token ids of prompts, padded to one length, from a local folder in the format of Hugging Face transformers.

    Nothing is fetched from the network and no code that the folder may bring is run.

    Args:
        folder: tokenizer folder, in Wan2.1's release google/umt5-xxl. text_len: L, number of token ids a prompt gets.

    Raises:
        FileNotFoundError: no such folder, or no tokenizer in it.
        ValueError: `text_len` below 1, or a tokenizer that does not end a text and pad it as T5's.
    """

    def __init__(self, folder: str | os.PathLike, text_len: int):
        if text_len < 1:
            raise ValueError(f"text_len is {text_len}; it must be at least 1")
        self.text_len = text_len
        self._tokenizer = _load(Path(folder))
        self._truncated: set[str] = set()

    def __call__(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask of a list of B prompts, each cleaned by `clean_prompt`.

        A prompt is followed by the end-of-text token and then by padding; the mask is 1 up to the end-of-text token.
        One that is too long loses its last tokens; the first time this happens to a text there is a warning.

        Returns:
            (ids, mask), NumPy int32 [B, L] each.

        Raises:
            ValueError: `prompts` is a single string.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts is the string {prompts!r}; a list of strings is expected")
        ids = np.full((len(prompts), self.text_len), self._tokenizer.pad_token_id, np.int32)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            tokens = self._tokenize(clean_prompt(prompt))
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return ids, mask

    def _tokenize(self, text: str) -> list[int]:
        """Ids of one text, the last of them the end-of-text token; at most L."""
        tokens = self._tokenizer(text, verbose=False).input_ids
        dropped = len(tokens) - self.text_len
        if dropped <= 0:
            return tokens
        if text not in self._truncated:
            self._truncated.add(text)
            warnings.warn(f"the prompt {text[:80]!r}... is too long: the last {dropped} of its {len(tokens) - 1} "
                          f"tokens are dropped (text_len {self.text_len} includes the end-of-text token)", stacklevel=3)
        return [*tokens[: self.text_len - 1], tokens[-1]]


def _load(folder: Path) -> "PreTrainedTokenizerBase":
    expected = f"expected is a folder with {CONFIG_FILE} and one of {', '.join(VOCABULARY_FILES)}"
    if not folder.is_dir():
        raise FileNotFoundError(f"tokenizer folder {folder} does not exist; {expected}")
    if not (folder / CONFIG_FILE).is_file() or not any((folder / name).is_file() for name in VOCABULARY_FILES):
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise FileNotFoundError(f"tokenizer folder {folder} is incomplete: it holds {found}; {expected}")
    # It advises users of models to install PyTorch; here are tokenizers only.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # Importing transformers takes seconds, which commands that need no tokenizer should not pay.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # Of damaged files the library raises whatever its parsers do.
        raise ValueError(f"the tokenizer in {folder} cannot be read: {' '.join(str(error).split())}") from error
    end = tokenizer.eos_token_id
    if tokenizer.pad_token_id is None or end is None or tokenizer("")["input_ids"] != [end]:
        raise ValueError(f"the tokenizer in {folder} pads with {tokenizer.pad_token!r} and turns the empty text into "
                         f"{tokenizer('')['input_ids']}; a T5 tokenizer has a padding token and gives its end-of-text "
                         "token alone")
    return tokenizer
