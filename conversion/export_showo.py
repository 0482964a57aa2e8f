"""Write a model of this package in the format of the original code. The command is `showo-hf export`.

The output has `showo/` and `magvitv2/`, each with `config.json` and weights, as the original's `from_pretrained` expects.
The original only knows Phi, so other backbones are refused.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedConfig

from showo_hf.models.configuration_showo import ShowoConfig
from showo_hf.models.modeling_showo import ShowoForCausalLM
from showo_hf.models.modeling_showo_lfq import indices_to_codes

from .architectures import SPECIAL_ORDER
from .checkpoint import Checkpoint, read_json_object
from .command_line import WEIGHT_FORMATS
from .errors import ConversionError
from .output import check_output, output_folder
from .plan import ConversionPlan, raise_all
from .shards import write_shards
from .weight_names import is_attention_kernel, original_magvitv2_names, original_showo_name


STEM = "pytorch_model"  # the name of the original's weights, in both formats

MAX_SHARD_SIZE = "100GB"  # the original reads one file

# Entries of the original's config that ours does not need.
CONFIG_DEFAULTS = {"_class_name": "Showo", "llm_model_path": "microsoft/phi-1_5"}
IMAGE_TOKENIZER_CONFIG = {"_class_name": "MAGVITv2"}
ORIGINAL_GROUPS = 32  # of the group norms in its image tokenizer


def export_showo(
    folder: str | Path,
    output: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = False,
    file_format: str = "safetensors",
) -> str:
    """
    Export a pipeline folder, or the `model/` in it, and return the report.

    Args:
        output: the folder to write. It is complete or absent.
        dtype: dtype of the saved weights; by default each tensor keeps its own.
        max_shard_size: size of the largest file, by default 100GB: the original reads a single file. A file of
            `torch.save` is never split.
        overwrite: replace an `output` that holds a model.
        file_format: "safetensors", or "bin" for `torch.save`.

    Raises:
        ConversionError: if `folder` is not a Show-o model of this package, or if the original does not support it.
        FileExistsError: if `output` exists and `overwrite` is False.
    """
    if file_format not in WEIGHT_FORMATS:
        raise ValueError(f"`file_format` must be one of {', '.join(WEIGHT_FORMATS)}, got {file_format!r}")
    if file_format == "bin" and max_shard_size is not None:
        raise ValueError(
            f"`max_shard_size` needs the `file_format` 'safetensors': a file of torch.save is never split, got "
            f"{max_shard_size!r} and 'bin'"
        )
    source = Path(folder)
    check_output(output, overwrite, [source])
    decoder = source / "image_decoder"
    folder = source / "model" if (source / "model").is_dir() else source
    config = read_our_config(folder)
    checkpoint = Checkpoint(folder)
    check_weights(checkpoint, config)
    showo, image_tokenizer, left_out = split_names(checkpoint, config)
    with output_folder(output, overwrite, [source]) as target:
        write_part(target / "showo", checkpoint, showo, original_config(config), dtype, max_shard_size, file_format)
        if image_tokenizer:
            tokenizer_config = config_before(config.image_tokenizer_config) or IMAGE_TOKENIZER_CONFIG
            constants = quantizer_constants(config.image_tokenizer_config.codebook_bits)
            write_part(
                target / "magvitv2",
                checkpoint,
                image_tokenizer,
                tokenizer_config,
                dtype,
                max_shard_size,
                file_format,
                constants,
            )
    lines = [f"{len(showo)} tensors of the transformer and {len(image_tokenizer)} of the image tokenizer exported"]
    if left_out:
        lines.append(f"{len(left_out)} left out (the CLIP tower, which the original loads separately)")
    groups = config.image_tokenizer_config.norm_num_groups if image_tokenizer else ORIGINAL_GROUPS
    if groups != ORIGINAL_GROUPS:
        lines.append(
            f"norm_num_groups is {groups}: the original's image tokenizer always has {ORIGINAL_GROUPS} and computes other "
            "tokens and pixels, unless its code is changed"
        )
    if decoder.is_dir():
        lines.append("image_decoder/ left out: the original has no diffusion decoder")
    return "\n".join(lines)


def read_our_config(folder: Path) -> ShowoConfig:
    """The config of a model that the original supports; `ConversionError` for any other model."""
    file = folder / "config.json"
    kind = read_json_object(file).get("model_type") if file.is_file() else None
    if kind != "showo":
        raise ConversionError(f"'{folder}' must be a Show-o saved by this package, got `model_type` {kind!r:.80}")
    config = ShowoConfig.from_pretrained(folder)
    text = config.text_config
    if text.model_type != "phi" or config.tie_word_embeddings or not config.lm_head_bias or not text.qk_layernorm:
        raise ConversionError(
            "the original only supports a Phi backbone with QK-Norm, and an untied head with a bias, got "
            f"{text.model_type} with `tie_word_embeddings` {config.tie_word_embeddings}, `lm_head_bias` "
            f"{config.lm_head_bias}, `qk_layernorm` {getattr(text, 'qk_layernorm', None)}"
        )
    tokenizer = config.image_tokenizer_config
    if tokenizer is not None and tokenizer.model_type != "showo_lfq":
        raise ConversionError(
            f"the original only supports the MAGVIT-v2 image tokenizer, got {tokenizer.model_type!r}"
        )
    if tokenizer is not None and not tokenizer.encoder_context:
        raise ConversionError(
            "the original's image tokenizer sees the cells around a cell, got `encoder_context` False: it would compute "
            "other tokens"
        )
    first = config.pad_token_id
    if first is None:
        raise ConversionError("the original needs a padding id after the ids of text, got `pad_token_id` None")
    ids = {f"{name}_token_id": first + i for i, name in enumerate(SPECIAL_ORDER)}
    offset = first + len(SPECIAL_ORDER)
    # The mask follows the image tokens at once, and nothing follows the mask.
    ids |= {"image_token_offset": offset, "mask_token_id": offset + config.codebook_size}
    ids["vocab_size"] = ids["mask_token_id"] + 1
    found = {name: getattr(config, name) for name in ids}
    wrong = [f"`{name}` is {found[name]}, must be {must}" for name, must in ids.items() if found[name] != must]
    raise_all("the original expects text ids, special ids, image tokens and mask in this order", wrong)
    return config


def check_weights(checkpoint: Checkpoint, config: ShowoConfig):
    """Raise `ConversionError` unless the weights are exactly those of the config's model."""
    with torch.device("meta"):
        model = ShowoForCausalLM(config)
    plan = ConversionPlan()
    plan.add(checkpoint, lambda name: name)
    plan.check(model)


def split_names(checkpoint: Checkpoint, config: ShowoConfig) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Original name to ours, for the transformer and for the image tokenizer, and the names of tensors left out."""
    prefix = "image_tokenizer."
    tokenizer = [name.removeprefix(prefix) for name in checkpoint if name.startswith(prefix)]
    stages = len(config.image_tokenizer_config.decoder_block_out_channels) if tokenizer else 0
    renamed = original_magvitv2_names(tokenizer, stages)
    left_out = [name for name in checkpoint if name.startswith("vision_tower.")]
    showo = [name for name in checkpoint if not name.startswith((prefix, "vision_tower."))]
    return (
        {original_showo_name(name): name for name in showo},
        {original: prefix + ours for ours, original in renamed.items()},
        left_out,
    )


def original_config(config: ShowoConfig) -> dict:
    """The original's config before the conversion, with the present sizes."""
    sizes = {
        "vocab_size": config.vocab_size,
        "llm_vocab_size": config.pad_token_id,
        "codebook_size": config.codebook_size,
        "num_vq_tokens": config.num_image_tokens,
        "w_clip_vit": config.image_feature_size is not None,
    }
    before = config_before(config)
    if not before:
        return CONFIG_DEFAULTS | sizes
    # No new keys: the original has defaults for the keys that the checkpoint lacked.
    return before | {name: value for name, value in sizes.items() if name in before}


def config_before(config: PreTrainedConfig) -> dict:
    """The original's config that a conversion kept; empty if there was none."""
    return json.loads(getattr(config, "original_config", None) or "{}")


def quantizer_constants(bits: int) -> dict[str, torch.Tensor]:
    """The buffers of the original's quantizer: the codebook (2 ** bits, bits) of -1 and 1, and powers of two (bits,)."""
    codes = indices_to_codes(torch.arange(2**bits), bits)
    return {"quantize.embedding": codes, "quantize.power_vals": 2 ** torch.arange(bits - 1, -1, -1)}


def write_part(
    folder: Path,
    checkpoint: Checkpoint,
    names: Mapping[str, str],
    config: dict,
    dtype: torch.dtype | None,
    max_shard_size: int | str | None,
    file_format: str,
    constants: Mapping[str, torch.Tensor] | None = None,
):
    """Write `config.json` and the weights of one original model. `names` maps original names to ours."""
    constants = constants or {}

    def read(name: str) -> torch.Tensor:
        return constants[name] if name in constants else in_original_form(name, checkpoint.tensor(names[name]), dtype)

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    layout = {name: in_original_form(name, checkpoint.meta(ours), dtype) for name, ours in names.items()}
    layout |= {name: tensor.to("meta") for name, tensor in constants.items()}
    if file_format == "bin":
        write_bin(folder / f"{STEM}.bin", layout, read)
    else:
        write_shards(folder, layout, read, max_shard_size or MAX_SHARD_SIZE, stem=STEM)


def in_original_form(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """One of our tensors in the original's shape and in `dtype`, by default its own."""
    return (tensor[:, :, None, None] if is_attention_kernel(name) else tensor).to(dtype or tensor.dtype)


def write_bin(file: Path, layout: Mapping[str, torch.Tensor], read: Callable[[str], torch.Tensor]):
    """
    Write a file with `torch.save`.

    `torch.save` takes all tensors at once. They go through shards that are mapped into memory, so that a conversion to
    another dtype does not hold the whole model.

    Raises:
        ConversionError: if the file cannot be written, for example to a full disk.
    """
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        shards = write_shards(Path(scratch), layout, read)
        tensors = {name: tensor for shard in shards for name, tensor in load_file(Path(scratch, shard)).items()}
        try:
            torch.save(tensors, file)
        except RuntimeError as error:  # torch's error for a full disk
            raise ConversionError(
                f"'{file.name}' could not be written; nothing was changed at the output: {error}"
            ) from error
