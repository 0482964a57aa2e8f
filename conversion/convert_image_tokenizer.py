"""Convert an image tokenizer to a folder of its own, whichever kind it is. The command is

showo-hf convert --image-tokenizer showlab/magvitv2 --output magvitv2-hf

A model converted by `showo-hf convert --showo ...` contains its image tokenizer.
"""

from pathlib import Path

import torch

from showo_hf.models.configuration_image_tokenizer import ShowoImageTokenizerConfig
from showo_hf.models.modeling_showo import IMAGE_TOKENIZERS
from showo_hf.utils.atomic_folder import check_target

from .architectures import infer_lfq_config
from .checkpoint import Checkpoint
from .errors import ConversionError
from .model_card import origin_of, write_tokenizer_card
from .output import check_output, output_folder, write_model
from .plan import ConversionPlan
from .sources import local_source
from .verify import verify_image_tokenizer
from .vq_tokenizers import add_vq, infer_vq_config, is_vq
from .weight_names import MAGVITV2_DROPPED, is_attention_kernel, magvitv2_name


def convert_image_tokenizer(
    image_tokenizer: str | Path,
    output: str | Path,
    *,
    sample_size: int = 256,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    verify: bool = False,
    repo_id: str | None = None,
) -> str:
    """
    Convert an image tokenizer and return the report.

    The original MAGVIT-v2 becomes a [`ShowoLFQTokenizer`]. diffusers' `VQModel` and taming-transformers' VQGAN become a
    [`ShowoVQTokenizer`].

    Args:
        image_tokenizer: a folder, a file or a Hub name.
        sample_size: height and width of the training images, in pixels, which no source names.

    The other arguments and the errors are the same as in [`convert_showo`].
    """
    check_target(output, overwrite)
    source = local_source("--image-tokenizer", str(image_tokenizer))
    check_output(output, overwrite, [source])
    origin = origin_of({"image_tokenizer": str(image_tokenizer)}, source, repo_id)
    checkpoint = Checkpoint(source)
    config = infer_image_tokenizer_config(checkpoint, sample_size)
    with torch.device("meta"):
        model = IMAGE_TOKENIZERS[config.model_type](config)
    plan = ConversionPlan()
    add_image_tokenizer(plan, checkpoint, config)
    plan.check(model)
    with output_folder(output, overwrite, [source]) as folder:
        write_model(folder, model, plan, dtype, max_shard_size)
        verification = verify_image_tokenizer(folder, checkpoint, dtype) if verify else None
        write_tokenizer_card(folder, config, origin, verification)
    return "\n".join([plan.report(), *([str(verification)] if verification else [])])


def infer_image_tokenizer_config(checkpoint: Checkpoint, sample_size: int = 256) -> ShowoImageTokenizerConfig:
    """
    The configuration of an image tokenizer in another code's format.

    Args:
        sample_size: height and width of the training images, in pixels.

    Raises:
        ConversionError: if the checkpoint is of no known kind, or of one that cannot be converted.
    """
    try:
        return (infer_vq_config if is_vq(checkpoint) else infer_lfq_config)(checkpoint, sample_size)
    except ConversionError:
        raise
    except ValueError as error:  # of the config: the sizes in the checkpoint are not those of a model
        raise ConversionError(f"the image tokenizer cannot be converted: {error}") from error


def add_image_tokenizer(
    plan: ConversionPlan, checkpoint: Checkpoint, config: ShowoImageTokenizerConfig, prefix: str = ""
):
    """Add each tensor of an image tokenizer in another code's format to a plan, under our name and `prefix`."""
    if config.model_type == "showo_vq":
        add_vq(plan, checkpoint, config, prefix)
        return
    stages = len(config.decoder_block_out_channels)
    plan.add(
        checkpoint,
        lambda name: magvitv2_name(name, stages),
        MAGVITV2_DROPPED,
        prefix,
        is_kernel=is_attention_kernel,
    )
