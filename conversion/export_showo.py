"""Write a model of this package in the format of the original code. Run as

python -m showo_hf.conversion.export_showo FOLDER --output FOLDER_IN_ORIGINAL_FORMAT

The same is `showo-hf export`. The output has `showo/` and `magvitv2/`, each with `config.json` and its weights, as the
original's `from_pretrained` takes them. It knows Phi alone, so other backbones are refused.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from showo_hf.atomic_folder import atomic_folder, check_target
from showo_hf.configuration_showo import ShowoConfig
from showo_hf.modeling_showo_lfq import indices_to_codes

from .arguments import FORMATS, add_export_arguments
from .checkpoint import Checkpoint
from .command import conversion_main, dtype_of
from .errors import ConversionError
from .plan import kept_dtype
from .safetensors_writer import TensorSpec, write_shards
from .weight_names import is_attention_kernel, original_magvitv2_names, original_showo_name


STEM = "pytorch_model"  # the original's name for its weights, in either format

# What the original's config has and ours does not need.
CONFIG_DEFAULTS = {"_class_name": "Showo", "llm_model_path": "microsoft/phi-1_5"}
IMAGE_TOKENIZER_CONFIG = {"_class_name": "MAGVITv2"}


def export_showo(
    folder: str | Path,
    output: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "100GB",
    overwrite: bool = False,
    file_format: str = "safetensors",
) -> str:
    """
    Export a pipeline folder, or the `model/` in it; returns the report.

    Args:
        dtype: of the weights on the disk; each tensor's own by default.
        file_format: "safetensors", or "bin" for `torch.save`.

    Raises:
        ConversionError: if it is no Show-o of this package, or one that the original cannot express.
        FileExistsError: if `output` exists and `overwrite` is False.
    """
    if file_format not in FORMATS:
        raise ValueError(f"`file_format` must be one of {', '.join(FORMATS)}, got {file_format!r}")
    check_target(output, overwrite)
    folder = Path(folder)
    folder = folder / "model" if (folder / "model").is_dir() else folder
    config = read_our_config(folder)
    checkpoint = Checkpoint(folder)
    showo, image_tokenizer, left_out = split_names(checkpoint, config)
    with atomic_folder(output, overwrite) as target:
        write_part(target / "showo", checkpoint, showo, original_config(config), dtype, max_shard_size, file_format)
        if image_tokenizer:
            tokenizer_config = (
                getattr(config.image_tokenizer_config, "original_config", None) or IMAGE_TOKENIZER_CONFIG
            )
            place = target / "magvitv2"
            constants = quantizer_constants(config.image_tokenizer_config.codebook_bits)
            write_part(
                place, checkpoint, image_tokenizer, tokenizer_config, dtype, max_shard_size, file_format, constants
            )
    report = f"{len(showo)} tensors of the transformer and {len(image_tokenizer)} of the picture tokenizer exported"
    return report + (
        f"\n{len(left_out)} left out (the CLIP tower, which the original keeps apart)" if left_out else ""
    )


def read_our_config(folder: Path) -> ShowoConfig:
    """The config of a model of this package that the original's classes can hold; else `ConversionError`."""
    file = folder / "config.json"
    kind = json.loads(file.read_text(encoding="utf-8")).get("model_type") if file.is_file() else None
    if kind != "showo":
        raise ConversionError(f"'{folder}' must be a Show-o saved by this package, got `model_type` {kind!r}")
    config = ShowoConfig.from_pretrained(folder)
    if config.text_config.model_type != "phi" or config.tie_word_embeddings:
        raise ConversionError(
            "the original knows the Phi backbone with a head of its own alone, got "
            f"{config.text_config.model_type} with `tie_word_embeddings` {config.tie_word_embeddings}"
        )
    return config


def split_names(checkpoint: Checkpoint, config: ShowoConfig) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Original name to ours for the transformer and for the picture tokenizer, and our names that are left out."""
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
    """The original's config: what it was before the conversion, with today's sizes."""
    sizes = {
        "vocab_size": config.vocab_size,
        "llm_vocab_size": config.pad_token_id,
        "codebook_size": config.codebook_size,
        "num_vq_tokens": config.num_image_tokens,
        "w_clip_vit": config.image_feature_size is not None,
    }
    before = getattr(config, "original_config", None)
    if not before:
        return CONFIG_DEFAULTS | sizes
    # A key that the checkpoint did not have is not added: its own defaults hold.
    return before | {name: value for name, value in sizes.items() if name in before}


def quantizer_constants(bits: int) -> dict[str, torch.Tensor]:
    """The buffers of the original's quantizer: its codes (2 ** bits, bits) of -1 and 1, and powers of two (bits,)."""
    codes = indices_to_codes(torch.arange(2**bits), bits)
    return {"quantize.embedding": codes, "quantize.power_vals": 2 ** torch.arange(bits - 1, -1, -1)}


def write_part(
    place: Path,
    checkpoint: Checkpoint,
    names: Mapping[str, str],
    config: dict,
    dtype: torch.dtype | None,
    max_shard_size: int | str,
    file_format: str,
    constants: Mapping[str, torch.Tensor] | None = None,
):
    """Write one model of the original's: `config.json` and the weights. `names` are original to ours."""
    constants = constants or {}

    def read(name: str) -> torch.Tensor:
        if name in constants:
            return constants[name]
        tensor = checkpoint.tensor(names[name])
        if is_attention_kernel(name):
            tensor = tensor[:, :, None, None]
        return tensor.to(kept_dtype(tensor.dtype, dtype))

    place.mkdir()
    (place / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if file_format == "bin":
        # Tensors in the source's dtype stay in its mapped file; torch.save writes one after the other.
        torch.save({name: read(name) for name in [*names, *constants]}, place / f"{STEM}.bin")
        return
    specs = {}
    for name, ours in names.items():
        shape = checkpoint.shape(ours) + ((1, 1) if is_attention_kernel(name) else ())
        specs[name] = TensorSpec(shape, kept_dtype(checkpoint.dtype(ours), dtype))
    specs |= {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in constants.items()}
    write_shards(place, specs, read, max_shard_size, stem=STEM)


def run(options: argparse.Namespace) -> str:
    """Export; returns the report."""
    return export_showo(
        options.folder,
        options.output,
        dtype=dtype_of(options.dtype),
        max_shard_size=options.max_shard_size,
        overwrite=options.overwrite,
        file_format=options.format,
    )


def main(arguments: list[str] | None = None) -> int:
    return conversion_main(__doc__, add_export_arguments, run, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
