"""Convert an original MAGVIT-v2 image tokenizer to a folder of its own. Run as

python -m showo_hf.conversion.convert_magvitv2 --image-tokenizer showlab/magvitv2 --output magvitv2-hf

Models converted with `convert_showo` have it inside; alone it serves whoever needs the tokenizer only.
"""

import argparse
from pathlib import Path

import torch

from showo_hf.models.modeling_showo_lfq import ShowoLFQTokenizer
from showo_hf.utils.atomic_folder import atomic_folder

from .architectures import infer_lfq_config
from .arguments import add_convert_magvitv2_arguments
from .checkpoint import Checkpoint
from .command import conversion_main, dtype_of
from .model_card import Origin, origin_of, write_tokenizer_card
from .output import check_output, write_model
from .plan import ConversionPlan
from .sources import local_source
from .verify import Verification, verify_magvitv2


def convert_magvitv2(
    source: str | Path,
    output: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    verify: bool = False,
    origin: Origin | None = None,
) -> str:
    """
    Convert an image tokenizer; returns the report. Arguments and errors are those of [`convert_showo`].
    """
    check_output(output, overwrite, [Path(source)])
    checkpoint = Checkpoint(source)
    config = infer_lfq_config(checkpoint)
    with torch.device("meta"):
        model = ShowoLFQTokenizer(config)
    plan = ConversionPlan()
    plan.add_image_tokenizer(checkpoint, config)
    plan.check(model)
    with atomic_folder(output, overwrite) as folder:
        write_model(folder, model, plan, dtype, max_shard_size)
        report = plan.report()
        verified: Verification | None = None
        if verify:
            verified = verify_magvitv2(folder, checkpoint, dtype)
            report += f"\n{verified}"
        write_tokenizer_card(folder, config, origin or Origin(), verified)
    return report


def run(options: argparse.Namespace) -> str:
    """Fetch, convert; returns the report."""
    source = local_source("--image-tokenizer", options.image_tokenizer)
    return convert_magvitv2(
        source,
        options.output,
        dtype=dtype_of(options.dtype),
        max_shard_size=options.max_shard_size,
        overwrite=options.overwrite,
        verify=options.verify,
        origin=origin_of({"image_tokenizer": options.image_tokenizer}, source, options.push_to_hub),
    )


def main(arguments: list[str] | None = None) -> int:
    return conversion_main(__doc__, add_convert_magvitv2_arguments, run, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
