"""Loading of configs, with errors that say what a folder holds when it does not hold the expected model."""

import contextlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME, find_adapter_config_file, is_peft_available
from transformers.utils.logging import get_logger

from .messages import LONGEST_NAME, examples
from .original_format import check_not_original
from .private_interfaces import HeldLoadReport


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
LONGEST_ANSWER = 10.0  # seconds
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


def base_of_adapter(source: str | os.PathLike, **options) -> str | None:
    """
    The base model that an adapter names, which transformers loads for a folder that has an adapter and no config.

    Args:
        source: a folder or the name of a repository on the Hub.
        options: as from [`hub_options`].

    Returns:
        The folder or the name on the Hub; None where transformers loads `source` itself.

    Raises:
        ValueError: if the adapter names no base model.
    """
    if not is_peft_available() or Path(source, CONFIG_NAME).is_file():
        return None
    file = None
    with contextlib.suppress(OSError, ValueError):  # the loading of the config, which follows, says what is wrong
        file = find_adapter_config_file(source, **options)
    if file is None:
        return None
    document = json.loads(Path(file).read_text(encoding="utf-8"))
    base = document.get("base_model_name_or_path") if isinstance(document, dict) else None
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"'{source}' is an adapter that names no base model. Load the base model, and the adapter with the "
            "`load_lora_weights` of a pipeline."
        )
    return base


def weight_sizes(folder: Path) -> list[int]:
    """The bytes of each file of weights in a folder."""
    return [file.stat().st_size for file in folder.glob("*") if file.is_file() and file.suffix in WEIGHT_SUFFIXES]


def weight_sizes_on_hub(name: str, **options) -> list[int]:
    """
    The bytes of each file of weights of a model on the Hub, which is asked once, before anything is downloaded.

    If the Hub does not answer, this takes the files that were downloaded before.

    Args:
        name: of the repository.
        options: as from [`hub_options`].
    """
    subfolder, revision = options.get("subfolder") or "", options.get("revision")
    if not options.get("local_files_only"):
        # Any error: of the network, of the Hub, or of a wrong name. The loading that follows says what is wrong.
        with contextlib.suppress(Exception):
            found = HfApi().model_info(
                name, revision=revision, token=options.get("token"), files_metadata=True, timeout=LONGEST_ANSWER
            )
            files = [(PurePosixPath(file.rfilename), file.size or 0) for file in found.siblings or ()]
            here = PurePosixPath(subfolder)
            return [size for file, size in files if file.parent == here and file.suffix in WEIGHT_SUFFIXES]
    config = try_to_load_from_cache(
        name, str(PurePosixPath(subfolder, "config.json")), cache_dir=options.get("cache_dir"), revision=revision
    )
    return weight_sizes(Path(config).parent) if isinstance(config, str) else []


def check_weights(source: object, sizes: list[int], least: int):
    """Raise `ValueError` if files of weights of these bytes cannot hold `least` parameters, and these need memory."""
    if sizes and least > MOST_PER_BYTE * sum(sizes):
        raise ValueError(
            f"'{source}' holds weights of {sum(sizes):,} bytes, and its config asks for {least:,} parameters or more."
        )


def differences(report: dict[str, set]) -> str:
    """
    How a folder's tensors differ from the model's tensors, with a few names; empty if they do not.

    Args:
        report: as transformers returns it with `output_loading_info=True`.
    """
    found = {
        "unexpected and not used": report["unexpected_keys"],
        "missing and newly initialized": report["missing_keys"],
        "of another shape and newly initialized": {name for name, *_ in report["mismatched_keys"]},
    }
    return "; ".join(f"{len(names):,} {what}: {examples(sorted(names))}" for what, names in found.items() if names)


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
    """A model that loads only if its weights can belong to its config. It shows no name out of a file as it stands."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """
        Same as in transformers, which would fill a large model whose weights are missing with random numbers.

        Tensors that the model does not have, and tensors that the folder lacks, are a warning with their numbers and a
        few names. `output_loading_info=True` returns all names.

        Raises:
            ValueError: if the weights in the folder, or on the Hub, are far too small for the config, or of other
                shapes.
        """
        source = pretrained_model_name_or_path
        if source is not None and kwargs.get("state_dict") is None:
            options = hub_options(kwargs)
            asked = config
            base = None if isinstance(config, PreTrainedConfig) else base_of_adapter(source, **options)
            if base is not None:
                source = base
                options.pop("revision", None)  # of the adapter
            if not isinstance(asked, PreTrainedConfig):
                given = (source, options) if asked is None else (asked, {})
                asked = cls.config_class.from_pretrained(given[0], **given[1])
            if (least := asked.least_parameters()) > SMALL_MODEL:
                if os.path.isdir(source):
                    source = Path(source, kwargs.get("subfolder") or "")
                    sizes = weight_sizes(source)
                else:
                    sizes = weight_sizes_on_hub(source, **options)
                check_weights(source, sizes, least)
        wants_report = kwargs.pop("output_loading_info", False)
        where = "the given weights" if source is None else f"'{pretrained_model_name_or_path}'"
        with HeldLoadReport() as held:
            try:
                model, report = super().from_pretrained(
                    pretrained_model_name_or_path, *model_args, config=config, output_loading_info=True, **kwargs
                )
            except RuntimeError as error:
                if not (lines := held.refused(error)):
                    raise
                shapes = examples(lines, longest=2 * LONGEST_NAME)
                raise ValueError(f"The weights in {where} do not fit the config: {shapes}.") from error
        # With an adapter in the folder, `report` is of the adapter alone.
        if different := differences(report) or examples(held.lines()[1:]):
            get_logger(HeldLoadReport.LOGGERS[0]).warning(
                f"`{cls.__name__}` found other tensors in {where} than the config asks for: {different}."
            )
        return (model, report) if wants_report else model
