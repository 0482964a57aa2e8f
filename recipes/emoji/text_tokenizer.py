"""Train a small text tokenizer on the captions of the emoji data set.

It is a byte-pair encoding with byte fallback, so decoding restores every string. Run from the repository root:

    python -m recipes.emoji.text_tokenizer --data data/emoji --output checkpoints/text-tokenizer
"""

import argparse
import random

from transformers import PreTrainedTokenizerFast

from recipes.byte_pairs import train_text_tokenizer
from recipes.emoji.captions import caption, text_corpus
from recipes.emoji.emoji import load_emoji


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the text tokenizer on the emoji captions.")
    parser.add_argument("--data", default="data/emoji", help="the folder that recipes.emoji.emoji wrote")
    parser.add_argument("--output", default="checkpoints/text-tokenizer", help="folder for the tokenizer")
    parser.add_argument("--vocab-size", type=int, default=2048, help="number of ids")
    options = parser.parse_args(arguments)
    records = load_emoji(options.data).records
    tokenizer = train_text_tokenizer(text_corpus(records), options.vocab_size, lower_case=True)
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
