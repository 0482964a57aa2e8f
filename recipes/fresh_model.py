"""Write an untrained model, which the training of the transformer starts from. Run from the repository root:

    python -m recipes.fresh_model --image-tokenizer checkpoints/world-image-tokenizer \
        --text-tokenizer checkpoints/world-text-tokenizer --known-words data/world-objects/known_words.json \
        --output checkpoints/world-fresh

The output is a pipeline folder.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import LlamaConfig, PreTrainedTokenizerFast

from showo_hf.models.configuration_showo import ShowoConfig
from showo_hf.models.image_tokenizer import ShowoImageTokenizer
from showo_hf.models.modeling_showo import ShowoForCausalLM
from showo_hf.pipelines import ShowoT2IPipeline
from showo_hf.processing.processing_showo import ShowoProcessor, add_showo_tokens, showo_image_processor
from showo_hf.schedulers import MaskGITScheduler
from showo_hf.training.diffusion_decoder import load_tokenizer
from showo_hf.training.text_models import vocabulary_options
from showo_hf.utils.atomic_folder import atomic_folder


def build_processor(
    text_tokenizer: PreTrainedTokenizerFast, image_tokenizer: ShowoImageTokenizer, **options
) -> ShowoProcessor:
    """A processor for images of the size that the image tokenizer was trained on. `options` are further arguments."""
    size = image_tokenizer.config.sample_size
    return ShowoProcessor(
        showo_image_processor(size),
        add_showo_tokens(text_tokenizer),
        codebook_size=image_tokenizer.config.codebook_size,
        num_image_tokens=(size // image_tokenizer.config.downsampling) ** 2,
        **options,
    )


def small_config(processor: ShowoProcessor, **text_options) -> ShowoConfig:
    """A Llama backbone with QK-Norm, as in the embedded model, with the vocabulary of the processor."""
    options = {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        **text_options,
    }
    return ShowoConfig(
        text_config=LlamaConfig(vocab_size=processor.mask_token_id + 1, **options),
        tie_word_embeddings=True,
        **vocabulary_options(processor),
    )


def fresh_pipeline(
    image_tokenizer: ShowoImageTokenizer,
    text_tokenizer: PreTrainedTokenizerFast,
    seed: int = 0,
    known_words: dict[str, list[str]] | None = None,
    **text_options,
) -> ShowoT2IPipeline:
    """
    A pipeline with an untrained transformer.

    Args:
        image_tokenizer, text_tokenizer: trained tokenizers.
        seed: seed of the weights.
        known_words: the words that it will learn; see [`ShowoProcessor`].
        text_options: entries of the backbone's config that differ from [`small_config`].
    """
    processor = build_processor(text_tokenizer, image_tokenizer, known_words=known_words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ShowoForCausalLM(small_config(processor, **text_options))
    model.config.image_tokenizer_config = image_tokenizer.config
    model.image_tokenizer = image_tokenizer.requires_grad_(False)
    return ShowoT2IPipeline(model.eval(), processor, MaskGITScheduler(mask_token_id=processor.codebook_size))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write an untrained model.")
    parser.add_argument("--image-tokenizer", required=True, help="a trained image tokenizer")
    parser.add_argument("--text-tokenizer", required=True, help="a trained text tokenizer")
    parser.add_argument("--output", required=True, help="folder for the pipeline")
    parser.add_argument("--known-words", help="a JSON file with the words that it will learn, by group")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    options = parser.parse_args(arguments)
    image_tokenizer = load_tokenizer(options.image_tokenizer)
    text_tokenizer = PreTrainedTokenizerFast.from_pretrained(options.text_tokenizer)
    known_words = json.loads(Path(options.known_words).read_text(encoding="utf-8")) if options.known_words else None
    pipe = fresh_pipeline(image_tokenizer, text_tokenizer, options.seed, known_words)
    with atomic_folder(Path(options.output), overwrite=True) as folder:
        pipe.save_pretrained(folder)
    print(f"{sum(weight.numel() for weight in pipe.model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
