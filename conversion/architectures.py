"""Configurations of this package, inferred from the shapes of original weights and from the original's config."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, PhiConfig

from showo_hf.models.configuration_showo import SPECIAL_TOKEN_NAMES, ShowoConfig
from showo_hf.models.configuration_showo_lfq import ShowoLFQTokenizerConfig
from showo_hf.utils.messages import examples
from showo_hf.utils.validation import shown

from .checkpoint import Checkpoint
from .errors import ConversionError


Shapes = Mapping[str, tuple[int, ...]]

DEFAULT_CODEBOOK_SIZE = 8192
DEFAULT_NUM_IMAGE_TOKENS = 256
SPECIAL_ORDER = ("pad", *SPECIAL_TOKEN_NAMES)  # their ids are between the text ids and the image tokens

# Settings of phi-1.5 that the weights do not show.
PHI_SETTINGS = {
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu_new",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "qk_layernorm": True,
}


def infer_showo_config(
    checkpoint: Checkpoint,
    image_tokenizer_config: ShowoLFQTokenizerConfig | None = None,
    vision_config: CLIPVisionConfig | None = None,
    num_image_tokens: int | None = None,
) -> ShowoConfig:
    """
    The configuration of an original Show-o checkpoint.

    The shapes of the weights give the sizes of the language model. `config.original_config` keeps the original's config
    as JSON, so that an export can restore it.

    Args:
        num_image_tokens: number of tokens of an image; by default the number in the checkpoint's config, or 256.

    Raises:
        ConversionError: if a weight is missing that gives a size, or if the config contradicts the weights.
    """
    shapes = {name: checkpoint.shape(name) for name in checkpoint}
    vocab_size, hidden_size = shape_of(shapes, "showo.model.embed_tokens.weight", 2)
    (head_dim,) = shape_of(shapes, "showo.model.layers.0.self_attn.q_layernorm.weight", 1)
    intermediate_size, _ = shape_of(shapes, "showo.model.layers.0.mlp.fc1.weight", 2)
    kv_size, _ = shape_of(shapes, "showo.model.layers.0.self_attn.k_proj.weight", 2)
    original = checkpoint.config
    codebook_size = read_size(original, "codebook_size", DEFAULT_CODEBOOK_SIZE)
    if num_image_tokens is None:
        num_image_tokens = read_size(original, "num_vq_tokens", DEFAULT_NUM_IMAGE_TOKENS)
    if math.isqrt(num_image_tokens) ** 2 != num_image_tokens:
        raise ConversionError(f"the number of tokens of an image must be a square number, got {num_image_tokens}")
    offset = vocab_size - 1 - codebook_size
    text_ids = offset - len(SPECIAL_ORDER)
    sizes = {"vocab_size": vocab_size, "llm_vocab_size": text_ids}
    wrong = [
        f"`{name}` is {shown(original[name])} (weights: {size})"
        for name, size in sizes.items()
        if original.get(name, size) != size
    ]
    if not head_dim or hidden_size % head_dim or kv_size % head_dim:
        wrong.append(f"head size {head_dim} does not divide the widths {hidden_size} and {kv_size}")
    if wrong:
        raise ConversionError(f"config.json does not fit the weights: {'; '.join(wrong)}")
    projector = shapes.get("mm_projector.0.weight")
    if bool(original.get("w_clip_vit", projector is not None)) != (projector is not None):
        raise ConversionError(
            f"config.json says `w_clip_vit` {original['w_clip_vit']}, but `mm_projector` is "
            f"{'there' if projector else 'missing'} in the weights"
        )
    return ShowoConfig(
        text_config=PhiConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=count_stages(shapes, r"showo\.model\.layers\.(\d+)\."),
            num_attention_heads=hidden_size // head_dim,
            num_key_value_heads=kv_size // head_dim,
            **PHI_SETTINGS,
        ),
        vision_config=vision_config if projector is not None else None,
        image_feature_size=projector[1] if projector is not None else None,
        image_tokenizer_config=image_tokenizer_config,
        codebook_size=codebook_size,
        num_image_tokens=num_image_tokens,
        max_text_length=read_size(original, "max_text_len", 128),
        image_token_offset=offset,
        mask_token_id=vocab_size - 1,
        **{f"{name}_token_id": text_ids + i for i, name in enumerate(SPECIAL_ORDER)},
        original_config=json.dumps(without_paths(original)),
    )


def infer_lfq_config(checkpoint: Checkpoint, sample_size: int = 256) -> ShowoLFQTokenizerConfig:
    """
    The configuration of an original MAGVIT-v2 checkpoint, from the shapes of its weights.

    Args:
        sample_size: height and width of the training images, in pixels.

    Raises:
        ConversionError: if a weight is missing that gives a size.
    """
    shapes = {name: checkpoint.shape(name) for name in checkpoint}
    bits, _ = shape_of(shapes, "encoder.conv_out.weight", 4, size=2)
    _, in_channels = shape_of(shapes, "encoder.conv_in.weight", 4, size=2)
    sizes: dict[str, Any] = {}
    for part, stage in (("encoder", "down"), ("decoder", "up")):
        stages = count_stages(shapes, rf"{part}\.{stage}\.(\d+)\.")
        if not stages:
            raise ConversionError(f"the weights have no `{part}.{stage}.0`, so this is not a MAGVIT-v2")
        blocks = [f"{part}.{stage}.{i}.block" for i in range(stages)]
        sizes[f"{part}_block_out_channels"] = [shape_of(shapes, f"{b}.0.conv1.weight", 4)[0] for b in blocks]
        sizes[f"{part}_layers_per_block"] = [count_stages(shapes, re.escape(b) + r"\.(\d+)\.") for b in blocks]
    return ShowoLFQTokenizerConfig(
        in_channels=in_channels,
        codebook_bits=bits,
        mid_block_attention="encoder.mid.attn_1.q.weight" in shapes,
        sample_size=sample_size,
        original_config=json.dumps(without_paths(checkpoint.config)),
        **sizes,
    )


def read_clip_vision_config(folder: Path, config: dict) -> CLIPVisionConfig:
    """The vision config of a CLIP checkpoint, or the config of a vision tower alone."""
    kind = config.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise ConversionError(f"'{folder}' must be a CLIP model or its vision tower, got `model_type` {shown(kind)}")
    return CLIPVisionConfig.from_dict(config.get("vision_config", {}) if kind == "clip" else config)


def shape_of(shapes: Shapes, name: str, dimensions: int, size: int | None = None) -> tuple[int, ...]:
    """The shape of a weight, or its first `size` numbers; `ConversionError` if the weight is missing."""
    shape = shapes.get(name)
    if shape is None:
        raise ConversionError(
            f"the weights lack `{name}`; they hold {len(shapes)} tensors, for example {examples(sorted(shapes)[:5])}"
        )
    if len(shape) != dimensions:
        raise ConversionError(f"`{name}` must have {dimensions} dimensions, got shape {list(shape)}")
    return shape[:size]


def count_stages(shapes: Shapes, pattern: str) -> int:
    """The number of indices that `pattern` finds in names; `ConversionError` unless they are 0, 1, 2 and so on."""
    found = {match[1] for name in shapes if (match := re.match(pattern, name))}
    if too_long := [number for number in found if len(number) > 9]:
        raise ConversionError(f"names like '{pattern}' must count from 0, got a number of {len(too_long[0]):,} digits")
    numbers = {int(number) for number in found}
    if numbers != set(range(len(numbers))):
        raise ConversionError(f"names like '{pattern}' must count from 0 without a gap, got {sorted(numbers)[:50]}")
    return len(numbers)


def read_size(config: dict, name: str, default: int) -> int:
    """A positive integer in a checkpoint's config; `ConversionError` for anything else."""
    value = config.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise ConversionError(f"`{name}` in config.json must be a positive integer, got {shown(value)}")
    return value


def without_paths(config: dict) -> dict:
    """A config with absolute paths cut to their last part, because the folder may be published."""
    return {
        key: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for key, value in config.items()
    }
