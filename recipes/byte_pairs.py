"""A small text tokenizer: a byte-pair encoding like sentencepiece's.

The token of a word includes the space before it, and characters that are not in the vocabulary become UTF-8 bytes.
"""

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


END_OF_TEXT = "<|endoftext|>"
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
PRINTABLE_ASCII = tuple(chr(code) for code in range(32, 127))

# A word, a digit or a run of punctuation, each with the space before it; or one white space character.
_PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s"


def train_text_tokenizer(texts: Iterable[str], vocab_size: int, lower_case: bool = False) -> PreTrainedTokenizerFast:
    """Train a byte-pair encoding with byte fallback.

    `decode(encode(text))` is `text` for every string without special tokens. The only special token is
    `<|endoftext|>` with id 0. It begins and ends texts, and is not added automatically. A processor appends the other
    special tokens of Show-o to the vocabulary.

    Args:
        texts: the training texts.
        vocab_size: number of ids; at least 352 for `<|endoftext|>`, the 256 bytes and printable ASCII.
        lower_case: lower-case every text first, so that case does not matter. Decoding then gives lower case.

    Raises:
        ValueError: if `vocab_size` is too small for the bytes and characters, or too large for `texts`.
    """
    smallest = 1 + len(BYTE_TOKENS) + len(PRINTABLE_ASCII)
    if vocab_size < smallest:
        raise ValueError(f"`vocab_size` must be at least {smallest}, got {vocab_size}")
    tokenizer = _untrained(lower_case)
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


def _untrained(lower_case: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    # Spaces are not replaced: a replacement such as U+2581 could not be distinguished from the same character in a text.
    # A space is prepended so that the first word has the same id as elsewhere. Decoding removes it.
    prepend = normalizers.Prepend(" ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), prepend]) if lower_case else prepend
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
