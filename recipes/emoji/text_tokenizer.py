"""Train a small text tokenizer on the captions of the emoji data set.

It is a byte-pair encoding like sentencepiece's: the token of a word includes the space before it, and characters that
are not in the vocabulary become UTF-8 bytes, so decoding restores every string. Run from the repository root:

    python -m recipes.emoji.text_tokenizer --data data/emoji --output checkpoints/text-tokenizer
"""

import argparse
import json
import random
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from recipes.emoji.captions import caption, text_corpus
from recipes.emoji.emoji import load_emoji


END_OF_TEXT = "<|endoftext|>"
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
PRINTABLE_ASCII = tuple(chr(code) for code in range(32, 127))

# A word, a digit or a run of punctuation, each with the space before it; or one white space character.
_PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s"


def train_text_tokenizer(texts: Iterable[str], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """Train a byte-pair encoding with byte fallback.

    `decode(encode(text))` is `text` for every string without special tokens. The only special token is
    `<|endoftext|>` with id 0. It begins and ends texts, and is not added automatically. A processor appends the other
    special tokens of Show-o to the vocabulary.

    Args:
        texts: the training texts.
        vocab_size: number of ids; at least 352 for `<|endoftext|>`, the 256 bytes and printable ASCII.

    Raises:
        ValueError: if `vocab_size` is too small for the bytes and characters, or too large for `texts`.
    """
    smallest = 1 + len(BYTE_TOKENS) + len(PRINTABLE_ASCII)
    if vocab_size < smallest:
        raise ValueError(f"`vocab_size` must be at least {smallest}, got {vocab_size}")
    tokenizer = _untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *BYTE_TOKENS],
        initial_alphabet=list(PRINTABLE_ASCII),
        limit_alphabet=max(len(PRINTABLE_ASCII), (vocab_size - 1 - len(BYTE_TOKENS)) // 2),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"`vocab_size` is {vocab_size}, but `texts` have only {tokenizer.get_vocab_size()} tokens")
    return PreTrainedTokenizerFast(
        tokenizer_object=_without_special_bytes(tokenizer),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _untrained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    # Spaces are not replaced: a replacement such as U+2581 could not be distinguished from the same character in a text.
    # A space is prepended so that the first word has the same id as elsewhere. Decoding removes it.
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    return tokenizer


def _without_special_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with byte tokens that are not special tokens.

    The trainer can only reserve ids for special tokens. But decoding drops special tokens, and the six characters
    "<0x41>" in a text would become a byte token.
    """
    fields = json.loads(tokenizer.to_str())
    fields["added_tokens"] = [token for token in fields["added_tokens"] if token["content"] == END_OF_TEXT]
    return Tokenizer.from_str(json.dumps(fields))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the text tokenizer on the emoji captions.")
    parser.add_argument("--data", default="data/emoji", help="the folder that recipes.emoji.emoji wrote")
    parser.add_argument("--output", default="checkpoints/text-tokenizer", help="folder for the tokenizer")
    parser.add_argument("--vocab-size", type=int, default=2048, help="number of ids")
    options = parser.parse_args(arguments)
    records = load_emoji(options.data).records
    tokenizer = train_text_tokenizer(text_corpus(records), options.vocab_size)
    tokenizer.save_pretrained(options.output)
    _report(tokenizer, records)


def _report(tokenizer: PreTrainedTokenizerFast, records: list) -> None:
    rng = random.Random(1)
    captions = [caption(record, rng) for record in records]
    lengths = sorted(len(ids) for ids in tokenizer(captions)["input_ids"])
    mean, median, longest = sum(lengths) / len(lengths), lengths[len(lengths) // 2], lengths[-1]
    print(f"{len(tokenizer)} ids; a caption takes {mean:.1f} ids, the median one {median}, the longest {longest}")


if __name__ == "__main__":
    main()
