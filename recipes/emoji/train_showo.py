"""Train a small Show-o on the emoji images: text to image, questions, and mixed conversations. Run from the root:

    python -m recipes.emoji.train_showo --data data/emoji --image-tokenizer checkpoints/image-tokenizer \
        --text-tokenizer checkpoints/text-tokenizer --output checkpoints/showo-emoji --steps 6000

The output is a pipeline folder that `ShowoT2IPipeline.from_pretrained` loads.
"""

import argparse
import json
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, PreTrainedTokenizerFast

from recipes.emoji.batches import TASKS, BatchMaker, TrainingSet, compute_loss
from recipes.emoji.colours import main_colour
from recipes.emoji.emoji import EmojiDataset, load_emoji
from recipes.emoji.train_image_tokenizer import to_pixel_values
from showo_hf.models.configuration_showo import ShowoConfig
from showo_hf.models.modeling_showo import ShowoForCausalLM
from showo_hf.models.modeling_showo_lfq import ShowoLFQTokenizer
from showo_hf.pipelines import ShowoT2IPipeline
from showo_hf.processing.processing_showo import ShowoProcessor, add_showo_tokens, showo_image_processor
from showo_hf.schedulers import MaskGITScheduler
from showo_hf.training.loop import add_loop_arguments, loop_options, train
from showo_hf.utils.private_interfaces import set_recompile_limit


def build_processor(text_tokenizer: PreTrainedTokenizerFast, image_tokenizer: ShowoLFQTokenizer) -> ShowoProcessor:
    """A processor for images of the size that the image tokenizer was trained on."""
    size = image_tokenizer.config.sample_size
    return ShowoProcessor(
        showo_image_processor(size),
        add_showo_tokens(text_tokenizer),
        codebook_size=image_tokenizer.config.codebook_size,
        num_image_tokens=(size // image_tokenizer.config.downsampling) ** 2,
    )


def small_config(processor: ShowoProcessor, **text_options) -> ShowoConfig:
    """A Llama backbone with QK-Norm, as in the embedded model, with the vocabulary of the processor."""
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
def encode_images(
    tokenizer: ShowoLFQTokenizer,
    images: np.ndarray,
    change: Callable[[torch.Tensor], torch.Tensor] = lambda pixel_values: pixel_values,
    batch_size: int = 64,
) -> torch.Tensor:
    """Encode images (N, H, W, 3) in 0..255 to tokens (N, tokens) int32. `change` augments pixels in [-1, 1]."""
    chunks = [
        tokenizer.encode(change(to_pixel_values(images[first : first + batch_size]))).image_tokens.flatten(1).int()
        for first in range(0, len(images), batch_size)
    ]
    return torch.cat(chunks)


def assemble_pipeline(
    model: ShowoForCausalLM, image_tokenizer: ShowoLFQTokenizer, processor: ShowoProcessor
) -> ShowoT2IPipeline:
    """Combine a trained transformer, the image tokenizer and the processor to a pipeline."""
    model.config.image_tokenizer_config = image_tokenizer.config
    model.image_tokenizer = image_tokenizer.requires_grad_(False)
    return ShowoT2IPipeline(model.eval(), processor, MaskGITScheduler(mask_token_id=processor.codebook_size))


def training_set(
    data: EmojiDataset, image_tokenizer: ShowoLFQTokenizer, views: int, cache: Path | None = None
) -> TrainingSet:
    """
    The training images: records, main colours, and the tokens of each image and of `views` augmented versions.

    Args:
        data: the data set.
        image_tokenizer: encodes the images.
        views: number of augmented versions of each image.
        cache: a file for the tokens, so that a resumed run need not encode again. Outdated files are replaced.
    """
    indices = data.train_indices
    images = data.images[indices]
    checksum = zlib.crc32(np.ascontiguousarray(images).data)
    for weight in image_tokenizer.state_dict().values():
        checksum = zlib.crc32(weight.contiguous().view(torch.uint8).numpy(), checksum)
    made_of = {"views": str(views), "checksum": str(checksum)}
    tokens = read_tokens(cache, made_of) if cache is not None else None
    if tokens is None:
        tokens = encode_views(image_tokenizer, images, views)
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            save_file({"tokens": tokens}, cache, metadata=made_of)
    colours = [main_colour(image) for image in images]
    return TrainingSet([data.records[i] for i in indices], colours, tokens)


def read_tokens(cache: Path, made_of: dict[str, str]) -> torch.Tensor | None:
    """The tokens in a file, or None if they were made from other images or weights."""
    if not cache.exists():
        return None
    with safe_open(cache, framework="pt") as file:
        return file.get_tensor("tokens") if file.metadata() == made_of else None


def encode_views(tokenizer: ShowoLFQTokenizer, images: np.ndarray, views: int) -> torch.Tensor:
    """Encode images (N, H, W, 3), and `views` augmented versions of them, to tokens (1 + views, N, h, w) int32."""
    side = images.shape[1] // tokenizer.config.downsampling
    generator = torch.Generator().manual_seed(0)
    moved = [partial(move, generator=generator) for _ in range(views)]
    tokens = [encode_images(tokenizer, images, change) for change in (lambda pixels: pixels, *moved)]
    return torch.stack(tokens).unflatten(-1, (side, side))


def move(pixel_values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """
    Shift each image by up to a sixteenth of its size and scale it by 0.85 to 1.1. The border becomes white.

    Args:
        pixel_values: (batch, 3, H, W) in [-1, 1].
    """
    draws = torch.rand(3, len(pixel_values), generator=generator)
    theta = torch.zeros(len(pixel_values), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / (0.85 + 0.25 * draws[0])
    theta[:, :, 2] = (draws[1:].T - 0.5) / 4  # in units of half the image size
    grid = F.affine_grid(theta, list(pixel_values.shape), align_corners=False)
    return F.grid_sample(pixel_values - 1, grid, align_corners=False) + 1  # zero padding is white after the shift


def tidy_config(config_file: Path):
    """
    Set the dtype to load in to float32, which is fast on any CPU, whatever dtype the weights are stored in. Remove paths
    of this machine.
    """
    without_folders = json.loads(
        config_file.read_text(encoding="utf-8"),
        object_hook=lambda config: {name: value for name, value in config.items() if name != "_name_or_path"},
    )
    config = without_folders | {"dtype": "float32"}
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_transformer(model: ShowoForCausalLM, folder: str):
    """Load the transformer weights of a saved pipeline with the same configuration, without its image tokenizer."""
    saved = ShowoForCausalLM.from_pretrained(folder, subfolder="model", dtype=torch.float32)
    saved.image_tokenizer = None
    model.load_state_dict(saved.state_dict())


def compile_layers(model: ShowoForCausalLM):
    """Compile each decoder layer in place, once for every row length."""
    set_recompile_limit(64)  # there is one compilation per row length
    for layer in model.model.layers:
        layer.compile(dynamic=False)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description="Train the embedded model's transformer.")
    parser.add_argument("--data", required=True, help="the folder that recipes.emoji.emoji wrote")
    parser.add_argument("--image-tokenizer", required=True, help="a trained ShowoLFQTokenizer")
    parser.add_argument("--text-tokenizer", required=True, help="a trained text tokenizer")
    parser.add_argument("--tasks", choices=tuple(TASKS), default="all", help="images: only text to image")
    parser.add_argument(
        "--views", type=int, default=3, help="shifted and scaled versions of each image, for questions"
    )
    parser.add_argument("--condition-dropout", type=float, default=0.1, help="share of empty prompts")
    # On a CPU and short sequences, eager attention is faster than the fused kernel, especially in the backward pass.
    parser.add_argument("--attention", default="eager", help="attention implementation while training")
    parser.add_argument(
        "--compile", action="store_true", help="compile the layers; pads the rows to few different lengths"
    )
    parser.add_argument("--save-dtype", default="bfloat16", choices=("float32", "bfloat16"), help="dtype on disk")
    parser.add_argument("--init-from", help="a pipeline folder; its transformer is trained further")
    add_loop_arguments(
        parser, batch_size=32, learning_rate=2e-3, warmup_steps=300, weight_decay=0.02, optimizer="muon"
    )
    options = parser.parse_args(arguments)

    image_tokenizer = ShowoLFQTokenizer.from_pretrained(options.image_tokenizer, dtype=torch.float32).eval()
    text_tokenizer = PreTrainedTokenizerFast.from_pretrained(options.text_tokenizer)
    processor = build_processor(text_tokenizer, image_tokenizer)
    shares = TASKS[options.tasks]
    cache = Path(options.output + "-tokens.safetensors")
    data = training_set(load_emoji(options.data), image_tokenizer, options.views if shares.question else 0, cache)
    make_batch = BatchMaker(
        data, processor, options.batch_size, shares, options.condition_dropout, compiled=options.compile
    )
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
