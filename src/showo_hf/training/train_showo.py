"""Train a small Show-o on the emoji pictures: mask-token prediction on pictures, next-token prediction on text. Run as

python -m showo_hf.training.train_showo --data data/emoji --image-tokenizer checkpoints/image-tokenizer \
    --text-tokenizer checkpoints/text-tokenizer --output checkpoints/showo-emoji --steps 6000

The output is a pipeline folder that `ShowoT2IPipeline.from_pretrained` loads.
"""

import argparse
import json
import math
import random
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, PreTrainedTokenizerFast

from ..configuration_showo import ShowoConfig
from ..modeling_showo import ShowoForCausalLM
from ..modeling_showo_lfq import ShowoLFQTokenizer
from ..pipelines import ShowoT2IPipeline
from ..processing_showo import ShowoProcessor, add_showo_tokens, showo_image_processor
from ..schedulers import MaskGITScheduler
from .captions import caption
from .emoji import EmojiDataset, EmojiRecord, load_emoji
from .loop import Batch, add_loop_arguments, loop_options, train
from .masking import drop_conditions, mask_tokens
from .train_image_tokenizer import to_pixel_values


COMPILED_MULTIPLE = 8  # what the lengths of rows are multiples of when the model is compiled
TEXT_ROWS = 0.25  # text rows for each text-to-image row: their loss weighs little and falls fast
TONELESS_SHARE = 0.5  # of the draws of an emoji that comes in several skin tones


def build_processor(text_tokenizer: PreTrainedTokenizerFast, image_tokenizer: ShowoLFQTokenizer) -> ShowoProcessor:
    """The processor of a model whose pictures have the picture tokenizer's trained size."""
    size = image_tokenizer.config.sample_size
    return ShowoProcessor(
        showo_image_processor(size),
        add_showo_tokens(text_tokenizer),
        codebook_size=image_tokenizer.config.codebook_size,
        num_image_tokens=(size // image_tokenizer.config.downsampling) ** 2,
    )


def small_config(processor: ShowoProcessor, **text_options) -> ShowoConfig:
    """A Llama backbone with QK-Norm at the size of the embedded model, and the processor's vocabulary."""
    options = {
        "hidden_size": 320,
        "intermediate_size": 864,
        "num_hidden_layers": 7,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "max_position_embeddings": 2048,
        **text_options,
    }
    return ShowoConfig(
        text_config=LlamaConfig(vocab_size=processor.mask_token_id + 1, **options),
        codebook_size=processor.codebook_size,
        num_image_tokens=processor.num_image_tokens,
        max_text_length=processor.max_text_length,
        image_token_offset=processor.image_token_offset,
        bos_token_id=processor.sot_token_id,
        eos_token_id=processor.eot_token_id,
        tie_word_embeddings=True,
        **processor.special_token_ids(),
    )


@torch.no_grad()
def encode_pictures(tokenizer: ShowoLFQTokenizer, pictures: np.ndarray, batch_size: int = 64) -> torch.Tensor:
    """Pictures (N, H, W, 3) in 0..255 to codes (N, tokens) int32."""
    chunks = [
        tokenizer.encode(to_pixel_values(pictures[first : first + batch_size])).image_tokens.flatten(1).int()
        for first in range(0, len(pictures), batch_size)
    ]
    return torch.cat(chunks)


def draw_weights(records: list[EmojiRecord]) -> torch.Tensor:
    """
    Weight of each record in the draws, (N,): each emoji of each style counts alike, however many skin tones it has.
    """
    tones: dict[tuple[str, str], int] = {}
    for record in records:
        key = (record.unified, record.style)
        tones[key] = tones.get(key, 0) + (record.tone is not None)

    def weight(record: EmojiRecord) -> float:
        count = tones[record.unified, record.style]
        if not count:
            return 1.0
        return TONELESS_SHARE if record.tone is None else (1 - TONELESS_SHARE) / count

    return torch.tensor([weight(record) for record in records])


class BatchMaker:
    """
    Batches of noised text-to-image rows and of text rows, from the random numbers of a step.

    Args:
        records, image_tokens: the training pictures and their codes (N, tokens).
        processor: builds the sequences.
        batch_size: text-to-image rows; there are a quarter as many text rows.
        condition_dropout: share of the pictures whose prompt is emptied.
        pad_to_multiple_of: the rows' lengths are multiples of it; a compiled model wants few different lengths.
    """

    def __init__(
        self,
        records: list[EmojiRecord],
        image_tokens: torch.Tensor,
        processor: ShowoProcessor,
        batch_size: int,
        condition_dropout: float = 0.1,
        pad_to_multiple_of: int = 1,
    ):
        self.records, self.image_tokens, self.processor = records, image_tokens, processor
        self.batch_size, self.condition_dropout = batch_size, condition_dropout
        self.pad_to_multiple_of = pad_to_multiple_of
        self.weights = draw_weights(records)

    def draw(self, count: int, generator: torch.Generator) -> tuple[list[int], list[str]]:
        """`count` rows of the data, and a caption of each."""
        rows = torch.multinomial(self.weights, count, replacement=True, generator=generator).tolist()
        rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
        return rows, [caption(self.records[row], rng) for row in rows]

    def __call__(self, generator: torch.Generator) -> Batch:
        rows, texts = self.draw(self.batch_size, generator)
        codes = self.image_tokens[rows].long()
        noised, _ = mask_tokens(codes, self.processor.codebook_size, generator)
        prompts = drop_conditions(texts, self.condition_dropout, generator)
        sequences = partial(self.processor.text_to_image, prompts, padding="longest")
        pictures = sequences(noised)["input_ids"]
        # Only what was masked is scored; the text of these rows never is.
        labels = sequences(codes)["input_ids"].masked_fill(pictures != self.processor.mask_token_id, -100)
        _, lines = self.draw(math.ceil(self.batch_size * TEXT_ROWS), generator)
        text = self.processor.text_only(lines)
        pad = self.processor.pad_token_id
        return {
            "picture_ids": self.widen(pictures, pad, side="left"),
            "picture_labels": self.widen(labels, -100, side="left"),
            "text_ids": self.widen(text["input_ids"], pad, side="right"),
            "text_labels": self.widen(text["labels"], -100, side="right"),
        }

    def widen(self, rows: torch.LongTensor, fill: int, side: str) -> torch.LongTensor:
        """Rows (batch, length) filled up to the next length that is a multiple of `pad_to_multiple_of`."""
        missing = -rows.shape[1] % self.pad_to_multiple_of
        return F.pad(rows, (missing, 0) if side == "left" else (0, missing), value=fill)


def compute_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The model's own losses of the picture rows and of the text rows; two passes, since text rows are short."""
    pictures = model(input_ids=batch["picture_ids"], labels=batch["picture_labels"], use_cache=False)
    text = model(input_ids=batch["text_ids"], labels=batch["text_labels"], use_cache=False)
    return pictures.loss + text.loss, {"t2i": pictures.loss_t2i, "lm": text.loss_lm}


def assemble_pipeline(
    model: ShowoForCausalLM, image_tokenizer: ShowoLFQTokenizer, processor: ShowoProcessor
) -> ShowoT2IPipeline:
    """A pipeline of a trained transformer, which gets the picture tokenizer."""
    model.config.image_tokenizer_config = image_tokenizer.config
    model.image_tokenizer = image_tokenizer.requires_grad_(False)
    return ShowoT2IPipeline(model.eval(), processor, MaskGITScheduler(mask_token_id=processor.codebook_size))


def training_set(data: EmojiDataset, image_tokenizer: ShowoLFQTokenizer) -> tuple[list[EmojiRecord], torch.Tensor]:
    """The records that are not held out, and their codes."""
    indices = data.train_indices
    return [data.records[i] for i in indices], encode_pictures(image_tokenizer, data.pictures[indices])


def tidy_config(config_file: Path):
    """
    Note float32 as the dtype to load in, whatever the weights are stored in: half the space, and fast on any CPU. Folders
    of this machine are nobody's business.
    """
    without_folders = json.loads(
        config_file.read_text(encoding="utf-8"),
        object_hook=lambda config: {name: value for name, value in config.items() if name != "_name_or_path"},
    )
    config = without_folders | {"dtype": "float32"}
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_transformer(model: ShowoForCausalLM, folder: str):
    """Take over the transformer of a saved pipeline of the same configuration; its picture tokenizer stays behind."""
    saved = ShowoForCausalLM.from_pretrained(folder, subfolder="model", dtype=torch.float32)
    saved.image_tokenizer = None
    model.load_state_dict(saved.state_dict())


def compile_layers(model: ShowoForCausalLM):
    """Compile each decoder layer in place, once for every length of the rows."""
    torch._dynamo.config.recompile_limit = 64  # lengths of picture rows and of text rows
    for layer in model.model.layers:
        layer.compile(dynamic=False)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description="Train the embedded model's transformer.")
    parser.add_argument("--data", required=True, help="the folder that showo_hf.training.emoji wrote")
    parser.add_argument("--image-tokenizer", required=True, help="a trained ShowoLFQTokenizer")
    parser.add_argument("--text-tokenizer", required=True, help="a trained text tokenizer")
    parser.add_argument("--condition-dropout", type=float, default=0.1, help="share of prompts that are emptied")
    # On short sequences and a CPU the plain products are faster than the fused kernel, most of all backwards.
    parser.add_argument("--attention", default="eager", help="attention implementation while training")
    parser.add_argument("--compile", action="store_true", help="compile the layers; rows are padded to few lengths")
    parser.add_argument("--save-dtype", default="bfloat16", choices=("float32", "bfloat16"), help="dtype on disk")
    parser.add_argument("--init-from", help="a pipeline folder whose transformer to train further")
    add_loop_arguments(
        parser, batch_size=32, learning_rate=2e-3, warmup_steps=300, weight_decay=0.02, optimizer="muon"
    )
    options = parser.parse_args(arguments)

    image_tokenizer = ShowoLFQTokenizer.from_pretrained(options.image_tokenizer, dtype=torch.float32).eval()
    text_tokenizer = PreTrainedTokenizerFast.from_pretrained(options.text_tokenizer)
    processor = build_processor(text_tokenizer, image_tokenizer)
    records, image_tokens = training_set(load_emoji(options.data), image_tokenizer)
    multiple = COMPILED_MULTIPLE if options.compile else 1
    make_batch = BatchMaker(records, image_tokens, processor, options.batch_size, options.condition_dropout, multiple)
    torch.manual_seed(options.seed)
    model = ShowoForCausalLM(small_config(processor))
    if options.init_from:
        load_transformer(model, options.init_from)
    model.set_attn_implementation(options.attention)
    if options.compile:
        compile_layers(model)

    def save(trained: nn.Module, folder: Path):
        pipeline = assemble_pipeline(trained, image_tokenizer, processor)
        pipeline.to(getattr(torch, options.save_dtype)).save_pretrained(folder)
        tidy_config(folder / "model" / "config.json")

    train(model, loop_options(options), make_batch, compute_loss, save)


if __name__ == "__main__":
    main()
