"""Checkpoints in the formats of other code: how to recognize and convert them."""

import shlex
from typing import Any


CONVERT_COMMANDS = {
    "Showo": "showo-hf convert --showo {source} --image-tokenizer showlab/magvitv2 "
    "--text-tokenizer microsoft/phi-1_5 --output FOLDER",
    "MAGVITv2": "python -m showo_hf.conversion.convert_magvitv2 --image-tokenizer {source} --output FOLDER",
    "VQModel": "showo-hf convert --image-tokenizer {source} --output FOLDER",
}


def check_not_original(config: dict[str, Any], source: object):
    """Raise `ValueError`, with the command that converts it, if `config` of `source` is of a format we convert."""
    name = str(config.get("_class_name"))
    command = CONVERT_COMMANDS.get(name)
    if command is not None and "model_type" not in config:
        command = command.format(source=shlex.quote(str(source)))
        kind = "a VQModel of diffusers" if name == "VQModel" else "a checkpoint of the original Show-o code"
        raise ValueError(f"'{source}' is {kind}. Convert it first: {command}")
