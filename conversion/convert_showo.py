"""Convert an original Show-o checkpoint to a pipeline folder. The command is `showo-hf convert`.

The tensors of one shard are in memory at a time, and nothing in a checkpoint is run.
"""

from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPImageProcessorPil, PreTrainedTokenizerBase

from showo_hf.models.configuration_showo import ShowoConfig
from showo_hf.models.modeling_showo import ShowoForCausalLM
from showo_hf.pipelines import ShowoT2IPipeline
from showo_hf.processing.processing_showo import ShowoProcessor, add_showo_tokens, showo_image_processor
from showo_hf.schedulers import MaskGITScheduler
from showo_hf.utils.atomic_folder import check_target

from .architectures import infer_showo_config, read_clip_vision_config
from .checkpoint import Checkpoint
from .convert_image_tokenizer import add_image_tokenizer, infer_image_tokenizer_config
from .errors import ConversionError
from .model_card import origin_of, write_model_card
from .output import check_output, output_folder, write_model
from .plan import ConversionPlan, raise_all
from .remote_code import add_code
from .sources import local_source
from .verify import verify_showo
from .weight_names import CLIP_DROPPED, SHOWO_DROPPED, clip_vision_name, showo_name


def convert_showo(
    showo: str | Path,
    image_tokenizer: str | Path,
    text_tokenizer: str | Path,
    output: str | Path,
    *,
    clip_vision: str | Path | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    verify: bool = False,
    num_image_tokens: int | None = None,
    with_code: bool = False,
    repo_id: str | None = None,
) -> str:
    """
    Convert a checkpoint and return the report.

    Args:
        showo: the transformer. This and every other source is a folder, a file or a Hub name.
        image_tokenizer: the image tokenizer, of any kind that [`convert_image_tokenizer`] takes.
        text_tokenizer: the tokenizer of phi-1.5.
        output: the pipeline folder to write. It is complete or absent.
        clip_vision: CLIP or its vision tower, for the CLIP-ViT variant. Without it the tower is left out.
        dtype: dtype of the saved weights; by default each tensor keeps its own.
        max_shard_size: size of the largest file of weights.
        overwrite: replace an `output` that holds a model.
        verify: run the converted model and compare it with the source, see [`verify_showo`].
        num_image_tokens: number of tokens of an image, if the checkpoint's config does not name it.
        with_code: add the package's code, see [`remote_code`].
        repo_id: the repository that the model card names.

    Raises:
        ConversionError: if a source is invalid. Nothing is written then.
        FileExistsError: if `output` exists and `overwrite` is False.
    """
    check_target(output, overwrite)  # before a download
    named = {"showo": showo, "image_tokenizer": image_tokenizer, "text_tokenizer": text_tokenizer}
    if clip_vision is not None:
        named["clip_vision"] = clip_vision
    sources = fetch(named)
    check_output(output, overwrite, sources.values())
    origin = origin_of(named, sources["showo"], repo_id)
    showo_weights, tokenizer_weights = Checkpoint(sources["showo"]), Checkpoint(sources["image_tokenizer"])
    clip = Checkpoint(sources["clip_vision"]) if clip_vision is not None else None
    try:
        config = infer_showo_config(
            showo_weights,
            infer_image_tokenizer_config(tokenizer_weights),
            read_clip_vision_config(clip.folder, clip.config) if clip is not None else None,
            num_image_tokens,
        )
    except ValueError as error:  # of a config: the sizes in the checkpoint are not those of a model
        raise ConversionError(str(error)) from error
    if clip is not None and config.vision_config is None:
        raise ConversionError("`--clip-vision` was given, but this Show-o has no `mm_projector` to use a tower")
    config.image_tokenizer_config.sample_size = image_size(config)
    processor = build_processor(sources["text_tokenizer"], config, clip.folder if clip is not None else None)
    with torch.device("meta"):
        model = ShowoForCausalLM(config)
    plan = ConversionPlan()
    plan.add(showo_weights, showo_name, SHOWO_DROPPED)
    add_image_tokenizer(plan, tokenizer_weights, config.image_tokenizer_config, prefix="image_tokenizer.")
    if clip is not None:
        plan.add(clip, clip_vision_name, CLIP_DROPPED)
    plan.check(model)

    with output_folder(output, overwrite, sources.values()) as folder:
        write_pipeline(folder, model, plan, processor, dtype, max_shard_size)
        if with_code:
            add_code(folder)
        verification = verify_showo(folder, showo_weights, tokenizer_weights, clip, dtype) if verify else None
        write_model_card(folder, config, origin, verification, with_code)
    report = [plan.report(), describe_sizes(config, showo_weights), *([str(verification)] if verification else [])]
    return "\n".join(report)


def fetch(named: dict[str, str | Path]) -> dict[str, Path]:
    """The local folder or file of each source; errors name the source's option."""
    return {
        name: local_source("--" + name.replace("_", "-"), str(value), weights=name != "text_tokenizer")
        for name, value in named.items()
    }


def write_pipeline(
    folder: Path,
    model: ShowoForCausalLM,
    plan: ConversionPlan,
    processor: ShowoProcessor,
    dtype: torch.dtype | None,
    max_shard_size: int | str,
):
    """Write the folder that `save_pretrained` would write; `model` is on the meta device."""
    model_folder = folder / "model"
    model_folder.mkdir()
    write_model(model_folder, model, plan, dtype, max_shard_size)
    model.generation_config.save_pretrained(model_folder)
    pipeline = ShowoT2IPipeline(model, processor, MaskGITScheduler(mask_token_id=model.config.codebook_size))
    pipeline.check_components()
    pipeline.save_config(folder)
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    for place in (model_folder, folder / "processor"):
        processor.save_pretrained(place)


def describe_sizes(config: ShowoConfig, showo: Checkpoint) -> str:
    """One line with the sizes that were read from the weights and the config."""
    text, size = config.text_config, image_size(config)
    note = "" if "num_vq_tokens" in showo.config else ", a number that the checkpoint does not say"
    return (
        f"{text.num_hidden_layers} layers of width {text.hidden_size}, {config.codebook_size} codes; images of "
        f"{config.num_image_tokens} tokens, {size} x {size} pixels{note}"
    )


def image_size(config: ShowoConfig) -> int:
    """Height and width, in pixels, of the model's training images."""
    return round(config.num_image_tokens**0.5) * config.image_tokenizer_config.downsampling


def build_processor(text_tokenizer: Path, config: ShowoConfig, clip_vision: Path | None = None) -> ShowoProcessor:
    """The processor of a converted model; `ConversionError` if its token ids differ from the model's."""
    vision = {}
    if clip_vision is not None:
        tower = config.vision_config
        vision["vision_processor"] = load_vision_processor(clip_vision, tower.image_size)
        vision["num_image_features"] = (tower.image_size // tower.patch_size) ** 2
    processor = ShowoProcessor(
        showo_image_processor(image_size(config)),
        add_showo_tokens(load_text_tokenizer(text_tokenizer)),
        codebook_size=config.codebook_size,
        num_image_tokens=config.num_image_tokens,
        max_text_length=config.max_text_length,
        **vision,
    )
    ids = {name: (found, getattr(config, name)) for name, found in processor.special_token_ids().items()}
    ids["image_token_offset"] = (processor.image_token_offset, config.image_token_offset)
    ids["sot_token_id"] = (processor.sot_token_id, config.bos_token_id)
    ids["eot_token_id"] = (processor.eot_token_id, config.eos_token_id)
    wrong = [
        f"`{name}` is {found}, the model's {expected}" for name, (found, expected) in ids.items() if found != expected
    ]
    raise_all("the text tokenizer does not match the model", wrong)
    return processor


def load_vision_processor(folder: Path, image_size: int) -> CLIPImageProcessorPil:
    """The image processor in the tower's folder, or CLIP's with the tower's image size if the folder has none."""
    if (folder / "preprocessor_config.json").is_file():
        return CLIPImageProcessorPil.from_pretrained(folder)
    return CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )


def load_text_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The text tokenizer in a folder. No code of the folder is run."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each kind of tokenizer fails differently
        raise ConversionError(f"'{folder}' has no text tokenizer that can be loaded: {error}") from error
