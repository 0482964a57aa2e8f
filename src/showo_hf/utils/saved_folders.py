"""Loading of configs, with errors that say what a folder holds when it does not hold the expected model."""

import contextlib
import os
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from transformers import PreTrainedConfig

from .original_format import check_not_original


#: The class that loads a model of this package, by `model_type`.
LOADERS = {
    "showo": "ShowoForCausalLM",
    "showo_diffusion_decoder": "ShowoDiffusionDecoder",
    "showo_lfq": "ShowoLFQTokenizer",
    "showo_vq": "ShowoVQTokenizer",
}
#: Models with fewer parameters fit into any memory, also where their weights are missing.
SMALL_MODEL = 2**28
#: No quantization stores more parameters in a byte.
MOST_PER_BYTE = 8
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth")


def check_model_type(config: dict[str, Any], source: object, expected: str):
    """
    Raise `ValueError` if `config`, read from `source`, describes a model of another type than `expected`.

    A config that names neither a `model_type` nor a class passes.
    """
    model_type = config.get("model_type")
    if model_type == expected:
        return
    classes = config.get("architectures") or [config.get("_class_name")]
    if model_type is None and classes == [None]:
        return
    what = " ".join(f"'{name}'" for name in (model_type, *classes[:1]) if name)
    advice = f" Load it with `{LOADERS[model_type]}.from_pretrained`." if model_type in LOADERS else ""
    raise ValueError(f"'{source}' holds a {what} model, and {LOADERS[expected]} loads '{expected}' models.{advice}")


def hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a `from_pretrained` that say how to reach the Hub."""
    names = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
    return {name: kwargs[name] for name in names if kwargs.get(name)}


def check_not_pipeline(source: object, expected: str, **options):
    """
    Raise `ValueError` if `source`, which has no model config, is the root folder of a diffusers pipeline.

    Args:
        source: a folder or the name of a repository on the Hub.
        options: as from [`hub_options`].
    """
    index: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        index = DiffusionPipeline.load_config(source, **options)
    if "_class_name" in index:
        raise ValueError(
            f"'{source}' is the root folder of a '{index['_class_name']}' pipeline, not of a model. Load the pipeline "
            f"with its own class, or the model in it with `{LOADERS[expected]}.from_pretrained(..., "
            "subfolder='model')`."
        )


def check_weights(folder: Path, least: int):
    """Raise `ValueError` if the files of weights in a folder cannot hold `least` parameters, and these need memory."""
    sizes = [file.stat().st_size for file in folder.glob("*") if file.is_file() and file.suffix in WEIGHT_SUFFIXES]
    if sizes and least > max(SMALL_MODEL, MOST_PER_BYTE * sum(sizes)):
        raise ValueError(
            f"'{folder}' holds weights of {sum(sizes):,} bytes, and its config asks for {least:,} parameters or more."
        )


class CheckedConfig(PreTrainedConfig):
    """A config that loads only from a folder of its own model."""

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Same as in transformers.

        Raises:
            ValueError: if the folder holds something else: a checkpoint of the original code, another model, or a
                whole pipeline. The message says what it is and how to load or convert it.
        """
        try:
            config_dict, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except OSError:
            check_not_pipeline(pretrained_model_name_or_path, cls.model_type, **hub_options(kwargs))
            raise
        if not config_dict:  # a local folder without `config.json`
            check_not_pipeline(pretrained_model_name_or_path, cls.model_type, **hub_options(kwargs))
        check_not_original(config_dict, pretrained_model_name_or_path)
        check_model_type(config_dict, pretrained_model_name_or_path, cls.model_type)
        return config_dict, unused

    def least_parameters(self) -> int:
        """A number of parameters that a model of this config does not fall far below. Subclasses say it."""
        raise NotImplementedError


class CheckedWeights:
    """A model that loads from a folder only if the folder's weights can be those of its config."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """
        Same as in transformers, which would fill a large model whose weights are missing with random numbers.

        Raises:
            ValueError: if the weights in a folder are far too small for the config.
        """
        source = pretrained_model_name_or_path
        if source is not None and os.path.isdir(source) and kwargs.get("state_dict") is None:
            folder = Path(source, kwargs.get("subfolder") or "")
            asked = config
            if not isinstance(asked, PreTrainedConfig):
                asked = cls.config_class.from_pretrained(folder if asked is None else asked)
            check_weights(folder, asked.least_parameters())
        return super().from_pretrained(source, *model_args, config=config, **kwargs)
