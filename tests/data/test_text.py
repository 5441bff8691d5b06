"""Cleaning of prompts, and a tokenizer folder built on the spot."""

import json
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest

from ospnext_ms.data.text import Tokenizer, clean_prompt
from tests.support.paths import ROOT

pytest.importorskip("transformers")
WORDS = ["a", "cat", "runs", "over", "the", "wet", "grass", "&", "猫"]
PAD, END, UNKNOWN = 0, 1, 2


def ids_of(words):
    return [3 + WORDS.index(word) if word in WORDS else UNKNOWN for word in words.split()]


def write_tokenizer(folder, ends_texts=True, pads=True):
    """A word-level tokenizer with T5's special tokens at T5's places."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if ends_texts:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", END)])
    special = {"eos_token": "</s>", "unk_token": "<unk>"} | ({"pad_token": "<pad>"} if pads else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def test_nothing_alarming_is_said_without_a_framework_for_models(tmp_path):
    """transformers advises to install PyTorch, which tokenizers do not need."""
    write_tokenizer(tmp_path)
    code = f"from ospnext_ms.data.text import Tokenizer; Tokenizer({str(tmp_path)!r}, 8)(['a cat'])"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRANSFORMERS_")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
                          env=environment | {"USE_TORCH": "0", "USE_TF": "0", "USE_FLAX": "0", "PYTHONPATH": str(ROOT)})
    assert (done.stdout, done.stderr) == ("", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(("text", "cleaned"), [
    ("a cat", "a cat"),
    ("  a \t cat\n\nruns \u00a0 ", "a cat runs"),
    ("a\u3000cat\x1f", "a cat"),
    ("sch\u00c3\u00b6n", "schön"),
    ("cat &amp; dog", "cat & dog"),
    ("&amp;quot;cat&amp;quot;", '"cat"'),
    ("&amp;amp;lt;", "<"),
    ("<b> &amp;lt;i&amp;gt;", "<b> <i>"),
    ("\u201ccat\u201d", '"cat"'),
    (" &nbsp; ", ""),
    ("", ""),
])
def test_clean_prompt(text, cleaned):
    assert clean_prompt(text) == cleaned


def test_white_space_is_what_regular_expressions_take_for_it():
    space = "".join(chr(i) for i in range(0x3100) if re.fullmatch(r"\s", chr(i)))
    space = space.replace("\x85", "")  # an ellipsis in Windows-1252, and that is what ftfy makes of it
    assert clean_prompt(f"a{space}b") == "a b"


def test_ids_and_mask(folder):
    ids, mask = Tokenizer(folder, 6)(["a cat runs", "", "a dog"])
    assert ids.dtype == mask.dtype == np.int32
    assert ids.tolist() == [[*ids_of("a cat runs"), END, PAD, PAD],
                            [END, PAD, PAD, PAD, PAD, PAD],
                            [*ids_of("a"), UNKNOWN, END, PAD, PAD, PAD]]
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]


def test_no_prompts(folder):
    ids, mask = Tokenizer(folder, 6)([])
    assert ids.shape == mask.shape == (0, 6)


def test_prompts_are_cleaned(folder):
    ids, _ = Tokenizer(folder, 8)(["cat  &amp;amp;\n the&nbsp;cat"])
    assert ids[0].tolist() == [*ids_of("cat & the cat"), END, PAD, PAD, PAD]


def test_as_transformers_pads_and_truncates(folder):
    from transformers import AutoTokenizer

    prompts = ["the cat runs over the wet grass", "a cat", "a cat runs over the"]
    expected = AutoTokenizer.from_pretrained(folder)(prompts, padding="max_length", truncation=True, max_length=6)
    with pytest.warns(UserWarning, match="too long"):
        ids, mask = Tokenizer(folder, 6)(prompts)
    assert ids.tolist() == expected["input_ids"]
    assert mask.tolist() == expected["attention_mask"]


def test_truncation_warns_once_per_text(folder):
    tokenizer = Tokenizer(folder, 5)
    long, other, fits = "the cat runs over the wet grass", "猫 " * 300, "a cat runs over"
    with pytest.warns(UserWarning, match="is too long") as caught:
        ids, mask = tokenizer([long, fits, long, other])
    assert ids[0].tolist() == [*ids_of("the cat runs over"), END]
    assert mask.all()
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert long in messages[0]
    assert "last 3 of its 7 tokens" in messages[0]
    assert "猫" in messages[1]
    assert "last 296 of its 300 tokens" in messages[1]
    assert len(messages[1]) < 300
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer([long, fits, other])


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="umt5 does not exist.*tokenizer_config.json.*tokenizer.json"):
        Tokenizer(tmp_path / "umt5", 8)


@pytest.mark.parametrize("missing", ["tokenizer.json", "tokenizer_config.json"])
def test_incomplete_folder(tmp_path, missing):
    write_tokenizer(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match="is incomplete.*expected is a folder with tokenizer_config.json"):
        Tokenizer(tmp_path, 8)


@pytest.mark.parametrize("options", [{"ends_texts": False}, {"pads": False}])
def test_tokenizer_of_another_kind(tmp_path, options):
    write_tokenizer(tmp_path, **options)
    with pytest.raises(ValueError, match="a T5 tokenizer has a padding token"):
        Tokenizer(tmp_path, 8)


@pytest.mark.parametrize(("name", "text"), [
    ("tokenizer.json", "{"), ("tokenizer.json", "[]"), ("tokenizer_config.json", '{"eos_token": 7}'),
    ("tokenizer_config.json", "{"), ("tokenizer_config.json", b"\xff"),
])
def test_a_damaged_tokenizer_is_named(tmp_path, name, text):
    write_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="the tokenizer in .* cannot be read: .+") as error:
        Tokenizer(tmp_path, 8)
    assert "\n" not in str(error.value)


def test_invalid_arguments(folder):
    with pytest.raises(ValueError, match="text_len is 0"):
        Tokenizer(folder, 0)
    with pytest.raises(ValueError, match="'a cat'; a list of strings is expected"):
        Tokenizer(folder, 8)("a cat")


def test_code_in_the_folder_is_not_run(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n"
                                      "from transformers import PreTrainedTokenizerFast as EvilTokenizer\n")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        Tokenizer(tmp_path, 8)
    assert not (tmp_path / "ran").exists()


def test_no_network(folder, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    ids, mask = Tokenizer(folder, 8)(["a cat"])
    assert ids.shape == mask.shape == (1, 8)
