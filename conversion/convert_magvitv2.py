"""Convert an original MAGVIT-v2 image tokenizer to a folder of its own. Run as

python -m showo_hf.conversion.convert_magvitv2 --image-tokenizer showlab/magvitv2 --output magvitv2-hf

A model converted by `showo-hf convert` contains its image tokenizer. This command is for the tokenizer alone.
"""

import argparse
from pathlib import Path

import torch

from showo_hf.models.modeling_showo_lfq import ShowoLFQTokenizer
from showo_hf.utils.atomic_folder import atomic_folder, check_target

from .architectures import infer_lfq_config
from .checkpoint import Checkpoint
from .command_line import (
    add_image_tokenizer_argument,
    add_output_arguments,
    add_verify_argument,
    report_errors,
    run_conversion,
    torch_dtype,
)
from .model_card import origin_of, write_tokenizer_card
from .output import check_output, write_model
from .plan import ConversionPlan
from .sources import local_source
from .verify import verify_magvitv2


def convert_magvitv2(
    image_tokenizer: str | Path,
    output: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    verify: bool = False,
    repo_id: str | None = None,
) -> str:
    """
    Convert an image tokenizer and return the report.

    Args:
        image_tokenizer: a folder, a file or a Hub name.

    The other arguments and the errors are the same as in [`convert_showo`].
    """
    check_target(output, overwrite)
    source = local_source("--image-tokenizer", str(image_tokenizer))
    check_output(output, overwrite, [source])
    origin = origin_of({"image_tokenizer": str(image_tokenizer)}, source, repo_id)
    checkpoint = Checkpoint(source)
    config = infer_lfq_config(checkpoint)
    with torch.device("meta"):
        model = ShowoLFQTokenizer(config)
    plan = ConversionPlan()
    plan.add_image_tokenizer(checkpoint, config)
    plan.check(model)
    with atomic_folder(output, overwrite) as folder:
        write_model(folder, model, plan, dtype, max_shard_size)
        verification = verify_magvitv2(folder, checkpoint, dtype) if verify else None
        write_tokenizer_card(folder, config, origin, verification)
    return "\n".join([plan.report(), *([str(verification)] if verification else [])])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(" Run as")[0])
    add_image_tokenizer_argument(parser)
    add_verify_argument(parser)
    add_output_arguments(parser)
    options = parser.parse_args(arguments)

    def convert() -> str:
        return convert_magvitv2(
            options.image_tokenizer,
            options.output,
            dtype=torch_dtype(options.dtype),
            max_shard_size=options.max_shard_size,
            overwrite=options.overwrite,
            verify=options.verify,
            repo_id=options.push_to_hub,
        )

    return report_errors(lambda: run_conversion(convert, options.output, options.push_to_hub, options.private))


if __name__ == "__main__":
    raise SystemExit(main())
