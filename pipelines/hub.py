"""Pipeline folders on the Hub and on disk: what is downloaded, and which class loads a component."""

from collections.abc import Iterable
from typing import Any

from huggingface_hub import snapshot_download

from showo_hf.utils.saved_folders import hub_options


#: The module of each class that `model_index.json` may name. It takes the place of the module that a folder names: a
#: folder that brings its own code (`showo-hf convert --with-code`) is loaded without running it.
COMPONENT_MODULES = {
    "ShowoDiffusionDecoder": "models.modeling_diffusion_decoder",
    "ShowoForCausalLM": "models.modeling_showo",
    "ShowoProcessor": "processing.processing_showo",
    "EntropyBoundScheduler": "schedulers.scheduling_entropy_bound",
    "HaltonScheduler": "schedulers.scheduling_halton",
    "MaskAndReplaceScheduler": "schedulers.scheduling_mask_and_replace",
    "MaskGITScheduler": "schedulers.scheduling_maskgit",
    "RemaskingScheduler": "schedulers.scheduling_remasking",
}
CONFIG_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
WEIGHT_NAMES = ("model", "diffusion_pytorch_model")  # of transformers and of diffusers


def download_pipeline(repo_id: str, index_name: str, components: Iterable[str], arguments: dict[str, Any]) -> str:
    """
    Download the files of a pipeline from the Hub that loading needs, and return the folder.

    Args:
        repo_id (`str`): name of the repository.
        index_name (`str`): name of the file that lists the components.
        components: names of the components to download.
        arguments: arguments of `from_pretrained`: `variant`, `use_safetensors`, `cache_dir`, `force_download`,
            `local_files_only`, `revision` and `token` are read.
    """
    weights = weight_patterns(arguments.get("variant"), arguments.get("use_safetensors"))
    patterns = [f"{name}/{pattern}" for name in sorted(components) for pattern in (*CONFIG_FILES, *weights)]
    options = {name: value for name, value in hub_options(arguments).items() if name not in ("proxies", "subfolder")}
    return snapshot_download(repo_id, allow_patterns=[index_name, *patterns], **options)


def weight_patterns(variant: str | None = None, use_safetensors: bool | None = None) -> list[str]:
    """File name patterns of weights, whole and in shards: safetensors, or pickles with `use_safetensors=False` only."""
    ending, stems = ("bin", ("pytorch_model",)) if use_safetensors is False else ("safetensors", WEIGHT_NAMES)
    infix = "" if variant is None else f".{variant}"
    return [f"{stem}{infix}{shard}.{ending}" for stem in stems for shard in ("", "-*")]


def with_installed_classes(config: dict[str, Any], package: str) -> dict[str, Any]:
    """Let the config of `model_index.json` name the classes of an installed `package` instead of code in the folder."""
    if not isinstance(config, dict):
        raise ValueError(f"`model_index.json` must hold a JSON object, got a {type(config).__name__}.")
    if isinstance(config.get("_class_name"), (list, tuple)):
        if not config["_class_name"]:
            raise ValueError("`_class_name` in `model_index.json` must name a class, got an empty list.")
        config = config | {"_class_name": config["_class_name"][-1]}
    for name, value in config.items():
        if isinstance(value, (list, tuple)) and not all(isinstance(part, (str, bool, type(None))) for part in value):
            raise ValueError(f"`{name}` in `model_index.json` must name a library and a class, got {value!r:.80}.")
    components = {
        name: [f"{package}.{COMPONENT_MODULES[value[1]]}", value[1]]
        for name, value in config.items()
        if isinstance(value, (list, tuple)) and len(value) == 2 and value[1] in COMPONENT_MODULES
    }
    return config | components
