"""Small real models, created in milliseconds."""

import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, PhiConfig

from recipes.byte_pairs import train_text_tokenizer
from showo_hf import (
    MaskGITScheduler,
    ShowoConfig,
    ShowoDiffusionDecoder,
    ShowoDiffusionDecoderConfig,
    ShowoForCausalLM,
    ShowoLFQTokenizer,
    ShowoLFQTokenizerConfig,
    ShowoProcessor,
    ShowoT2IPipeline,
    ShowoVQTokenizer,
    ShowoVQTokenizerConfig,
)
from showo_hf.models.configuration_showo import SPECIAL_TOKEN_NAMES
from showo_hf.processing.processing_showo import add_showo_tokens, showo_image_processor


BITS = 6
CODES = 2**BITS
TEXT_IDS = 60
SIDE = 4  # tokens along each side of an image at the trained size
FACTOR = 4  # pixels along each side of a token


def lfq_config(stages=3, **kwargs) -> ShowoLFQTokenizerConfig:
    """6 bits, and 2 ** (stages - 1) pixels along each side of a token."""
    options = {
        "codebook_bits": BITS,
        "encoder_block_out_channels": [8] * (stages - 1) + [16],
        "decoder_block_out_channels": [8] * (stages - 1) + [16],
        "encoder_layers_per_block": [1] * stages,
        "decoder_layers_per_block": [1] * (stages - 1) + [2],
        "norm_num_groups": 4,
        "sample_size": SIDE * 2 ** (stages - 1),
    }
    return ShowoLFQTokenizerConfig(**(options | kwargs))


def lfq(seed=0, **kwargs) -> ShowoLFQTokenizer:
    torch.manual_seed(seed)
    return ShowoLFQTokenizer(lfq_config(**kwargs)).eval()


def vq_config(stages=3, **kwargs) -> ShowoVQTokenizerConfig:
    """As many codes as [`lfq_config`] has, and attention in the last stage."""
    options = {
        "codebook_size": CODES,
        "codebook_dim": 4,
        "latent_channels": 8,
        "encoder_block_out_channels": [8] * (stages - 1) + [16],
        "decoder_block_out_channels": [8] * (stages - 1) + [16],
        "encoder_layers_per_block": [1] * stages,
        "decoder_layers_per_block": [1] * (stages - 1) + [2],
        "encoder_block_attention": [False] * (stages - 1) + [True],
        "decoder_block_attention": [False] * (stages - 1) + [True],
        "norm_num_groups": 4,
        "sample_size": SIDE * 2 ** (stages - 1),
    }
    return ShowoVQTokenizerConfig(**(options | kwargs))


def vq(seed=0, **kwargs) -> ShowoVQTokenizer:
    """A tokenizer whose codebook has about the size of its latents, so that images use many codes."""
    torch.manual_seed(seed)
    model = ShowoVQTokenizer(vq_config(**kwargs)).eval()
    with torch.no_grad():
        model.quantizer.codebook.normal_(std=0.5)
    return model


#: Makes an image tokenizer of each kind.
TOKENIZERS = {"lfq": lfq, "vq": vq}


def image_decoder(seed=0, **kwargs) -> ShowoDiffusionDecoder:
    """A decoder for the tokens of [`lfq`], with weights so large that its image differs from the tokenizer's."""
    options = {
        "codebook_channels": BITS,
        "downsampling": FACTOR,
        "sample_size": SIDE * FACTOR,
        "patch_size": 2,
        "block_out_channels": [8, 16],
        "norm_num_groups": 4,
        "num_inference_steps": 2,
    }
    torch.manual_seed(seed)
    return ShowoDiffusionDecoder(ShowoDiffusionDecoderConfig(**(options | kwargs))).eval()


def text_config(backbone: str, vocab_size: int, **kwargs):
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    if backbone == "phi":
        return PhiConfig(**(sizes | {"qk_layernorm": True} | kwargs))
    return LlamaConfig(**(sizes | {"num_key_value_heads": 2} | kwargs))


def showo_config(backbone="phi", text_ids=TEXT_IDS, images=True, text_options=None, **kwargs) -> ShowoConfig:
    """The published layout with few ids: text, [PAD], the nine special tokens, 64 image tokens, the mask."""
    special = {f"{name}_token_id": text_ids + 1 + i for i, name in enumerate(SPECIAL_TOKEN_NAMES)}
    offset = text_ids + 1 + len(special)
    options = {
        "text_config": text_config(backbone, offset + CODES + 1, **(text_options or {})),
        "image_tokenizer_config": lfq_config() if images else None,
        "codebook_size": CODES,
        "num_image_tokens": SIDE * SIDE,
        "max_text_length": 10,
        "image_token_offset": offset,
        "mask_token_id": offset + CODES,
        "pad_token_id": text_ids,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **special,
    }
    return ShowoConfig(**(options | kwargs))


def showo(backbone="phi", seed=0, **kwargs) -> ShowoForCausalLM:
    """A model with weights so large that each token affects the others."""
    torch.manual_seed(seed)
    model = ShowoForCausalLM(showo_config(backbone, **kwargs)).eval()
    with torch.no_grad():
        for name, weight in model.model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(std=1.0 if "embed" in name else 1.2 / weight.shape[1] ** 0.5)
        model.lm_head.weight.normal_(std=0.3)
    return model


def showo_with(kind: str, backbone="llama", seed=0, **kwargs) -> ShowoForCausalLM:
    """[`showo`] with the image tokenizer of a kind of [`TOKENIZERS`]."""
    tokenizer = TOKENIZERS[kind]()
    model = showo(backbone, seed, image_tokenizer_config=tokenizer.config, **kwargs)
    model.image_tokenizer.load_state_dict(tokenizer.state_dict())
    return model


WORDS = ("a red apple", "a green pear on a table", "two hearts", "owl", "a smiling cat, flat style")


def text_tokenizer():
    return train_text_tokenizer([word for word in WORDS for _ in range(20)], vocab_size=370)


def processor(**kwargs) -> ShowoProcessor:
    return ShowoProcessor(
        showo_image_processor(SIDE * FACTOR),
        add_showo_tokens(text_tokenizer()),
        codebook_size=CODES,
        num_image_tokens=SIDE * SIDE,
        max_text_length=10,
        **kwargs,
    )


def clip_processor() -> ShowoProcessor:
    """The processor for [`clip_showo`], with a tower that encodes 8 x 8 pixels as 4 features."""
    vision_processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    return processor(vision_processor=vision_processor, num_image_features=4)


def clip_showo(text_ids: int) -> ShowoForCausalLM:
    """A model with a vision tower and an image tokenizer."""
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return showo(text_ids=text_ids, vision_config=CLIPVisionConfig(**sizes, image_size=8, patch_size=4))


def pipeline(processor: ShowoProcessor, backbone="llama", **scheduler_options) -> ShowoT2IPipeline:
    text_ids = processor.pad_token_id  # [PAD] follows the text ids
    model = showo(backbone, text_ids=text_ids)
    pipe = ShowoT2IPipeline(model, processor, MaskGITScheduler(mask_token_id=CODES, **scheduler_options))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image(config: ShowoConfig, seed=0, tokens=SIDE * SIDE) -> list[int]:
    """Ids of `soi image eoi` with random image tokens."""
    codes = torch.randint(CODES, (tokens,), generator=torch.Generator().manual_seed(seed))
    return [config.soi_token_id, *(codes + config.image_token_offset).tolist(), config.eoi_token_id]
