"""Convert an original MAGVIT-v2 image tokenizer to a folder of its own. Run as

python -m showo_hf.conversion.convert_magvitv2 --image-tokenizer showlab/magvitv2 --output magvitv2-hf

`showo-hf convert --image-tokenizer` does the same, see [`convert_image_tokenizer`].
"""

import argparse

from .command_line import (
    add_image_tokenizer_argument,
    add_output_arguments,
    add_verify_argument,
    report_errors,
    run_conversion,
    torch_dtype,
)
from .convert_image_tokenizer import convert_image_tokenizer


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(" Run as")[0])
    add_image_tokenizer_argument(parser)
    add_verify_argument(parser)
    add_output_arguments(parser)
    options = parser.parse_args(arguments)

    def convert() -> str:
        return convert_image_tokenizer(
            options.image_tokenizer,
            options.output,
            dtype=torch_dtype(options.dtype),
            max_shard_size=options.max_shard_size,
            overwrite=options.overwrite,
            verify=options.verify,
            repo_id=options.push_to_hub,
        )

    return report_errors(
        lambda: run_conversion(convert, options.output, options.push_to_hub, options.private, options.quiet)
    )


if __name__ == "__main__":
    raise SystemExit(main())
