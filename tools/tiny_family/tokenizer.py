"""The tokenizer of the tiny family: byte-pair encoding learned from the captions, at most 256 pieces.

    python -m tools.tiny_family.tokenizer --output tools/tiny_family/weights/tokenizer

Every printable ASCII character is a piece, so that any English text can be encoded; text is lower-cased; </s> closes
it, as in UMT5.
"""

import argparse

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from transformers import PreTrainedTokenizerFast

from tools.tiny_family import digits

VOCAB_SIZE = 256
TEXT_LEN = 32
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"


def caption_corpus(count=5000, seed=0):
    """Captions of `count` random labels, and every number word: what the merges are learned from."""
    rng = np.random.default_rng(seed)
    return [digits.caption_of(digits.draw_label(rng), rng) for _ in range(count)] + list(digits.NUMBER_WORDS)


def build_tokenizer():
    """A transformers fast tokenizer with <pad> 0, </s> 1, <unk> 2."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = MetaspaceDecoder()
    printable = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[PAD, EOS, UNKNOWN], initial_alphabet=printable, show_progress=False
    )
    tokenizer.train_from_iterator(caption_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, model_max_length=TEXT_LEN
    )


def tokenize(tokenizer, texts, text_len=TEXT_LEN):
    """Texts as (ids int64 [B, L], mask int64 [B, L]), cut and zero-padded to `text_len`, </s> included."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=text_len, return_tensors="np")
    return encoded["input_ids"].astype(np.int64), encoded["attention_mask"].astype(np.int64)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder to write the tokenizer to")
    arguments = parser.parse_args()
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(arguments.output)
    print(f"{len(tokenizer)} pieces in {arguments.output}")


if __name__ == "__main__":
    main()
