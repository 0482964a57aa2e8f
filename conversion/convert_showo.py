"""Convert an original Show-o checkpoint to a pipeline folder. Run as

python -m showo_hf.conversion.convert_showo --showo showlab/show-o --image-tokenizer showlab/magvitv2 \
    --text-tokenizer microsoft/phi-1_5 --output show-o-hf

The same is `showo-hf convert`. Tensors go from disk to disk one at a time; nothing in a checkpoint is run.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPImageProcessorPil, PreTrainedTokenizerBase

from showo_hf.models.configuration_showo import ShowoConfig
from showo_hf.models.modeling_showo import ShowoForCausalLM
from showo_hf.pipelines import ShowoT2IPipeline
from showo_hf.processing.processing_showo import ShowoProcessor, add_showo_tokens, showo_image_processor
from showo_hf.schedulers import MaskGITScheduler
from showo_hf.utils.atomic_folder import atomic_folder

from .architectures import infer_lfq_config, infer_showo_config, read_clip_vision_config
from .arguments import add_convert_arguments
from .checkpoint import Checkpoint
from .command import conversion_main, dtype_of
from .errors import ConversionError
from .model_card import Origin, origin_of, write_model_card
from .output import check_output, write_model
from .plan import ConversionPlan, raise_all
from .remote_code import add_code
from .sources import local_source
from .verify import Verification, verify_showo
from .weight_names import CLIP_DROPPED, SHOWO_DROPPED, clip_vision_name, showo_name


@dataclass
class ShowoSources:
    """What is converted: local folders or files. `clip_vision` is None for models without, or with no tower wanted."""

    showo: Path
    image_tokenizer: Path
    text_tokenizer: Path
    clip_vision: Path | None = None


def convert_showo(
    sources: ShowoSources,
    output: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    verify: bool = False,
    num_image_tokens: int | None = None,
    origin: Origin | None = None,
    with_code: bool = False,
) -> str:
    """
    Convert a checkpoint; returns the report.

    Args:
        output: the pipeline folder that is written. It is whole or not there.
        dtype: of the weights on the disk; each tensor's own by default.
        verify: run the converted model and a plain re-reading of the source, see [`verify_showo`].
        num_image_tokens: tokens of an image, where the checkpoint's config does not say it.
        origin: where all this comes from, for the model card.
        with_code: put the package's code in too, see [`remote_code`].

    Raises:
        ConversionError: if the checkpoint is not what it should be. Nothing is written then.
        FileExistsError: if `output` exists and `overwrite` is False.
    """
    check_output(output, overwrite, [path for path in vars(sources).values() if path is not None])
    showo, tokenizer_weights = Checkpoint(sources.showo), Checkpoint(sources.image_tokenizer)
    clip = Checkpoint(sources.clip_vision) if sources.clip_vision is not None else None
    config = infer_showo_config(
        showo,
        infer_lfq_config(tokenizer_weights),
        read_clip_vision_config(clip.folder, clip.config) if clip is not None else None,
        num_image_tokens,
    )
    if clip is not None and config.vision_config is None:
        raise ConversionError(
            "`--clip-vision` was given, but this Show-o has no `mm_projector` that would use a tower"
        )
    config.image_tokenizer_config.sample_size = image_size(config)
    processor = build_processor(sources.text_tokenizer, config, clip.folder if clip is not None else None)
    with torch.device("meta"):
        model = ShowoForCausalLM(config)
    plan = ConversionPlan()
    plan.add(showo, showo_name, SHOWO_DROPPED)
    plan.add_image_tokenizer(tokenizer_weights, config.image_tokenizer_config, prefix="image_tokenizer.")
    if clip is not None:
        plan.add(clip, clip_vision_name, CLIP_DROPPED)
    plan.check(model)

    with atomic_folder(output, overwrite) as folder:
        write_pipeline(folder, model, plan, processor, dtype, max_shard_size)
        if with_code:
            add_code(folder)
        report = f"{plan.report()}\n{sizes_of(config, showo)}"
        verified: Verification | None = None
        if verify:
            verified = verify_showo(folder, showo, tokenizer_weights, clip, dtype)
            report += f"\n{verified}"
        write_model_card(folder, config, origin or Origin(), verified, with_code)
    return report


def write_pipeline(
    folder: Path,
    model: ShowoForCausalLM,
    plan: ConversionPlan,
    processor: ShowoProcessor,
    dtype: torch.dtype | None,
    max_shard_size: int | str,
):
    """Write a pipeline folder as `save_pretrained` would, the weights by streaming; `model` is on the meta device."""
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


def sizes_of(config: ShowoConfig, showo: Checkpoint) -> str:
    """What was read off the weights and the config, in a line."""
    text, size = config.text_config, image_size(config)
    told = "" if "num_vq_tokens" in showo.config else ", which the checkpoint does not say"
    return (
        f"{text.num_hidden_layers} layers of width {text.hidden_size}, {config.codebook_size} codes; images of "
        f"{config.num_image_tokens} tokens, {size} x {size} pixels{told}"
    )


def image_size(config: ShowoConfig) -> int:
    """Height and width, in pixels, of the images that a model was trained on."""
    return round(config.num_image_tokens**0.5) * config.image_tokenizer_config.downsampling


def build_processor(text_tokenizer: Path, config: ShowoConfig, clip_vision: Path | None = None) -> ShowoProcessor:
    """The processor of a converted model; `ConversionError` unless its ids are the model's."""
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
    wrong = [f"`{name}` is {found}, the model's {wanted}" for name, (found, wanted) in ids.items() if found != wanted]
    raise_all("the text tokenizer does not fit the model", wrong)
    return processor


def load_vision_processor(folder: Path, image_size: int) -> CLIPImageProcessorPil:
    """The tower's own preprocessing; CLIP's with the tower's image size where the folder has no settings of it."""
    if (folder / "preprocessor_config.json").is_file():
        return CLIPImageProcessorPil.from_pretrained(folder)
    return CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )


def load_text_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The text tokenizer in a folder; no code of the folder is run."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # every kind of tokenizer fails in its own way
        raise ConversionError(f"'{folder}' holds no text tokenizer that can be loaded: {error}") from error


def run(options: argparse.Namespace) -> str:
    """Fetch, convert; returns the report."""
    names = {
        name: getattr(options, name)
        for name in ("showo", "image_tokenizer", "text_tokenizer", "clip_vision")
        if getattr(options, name) is not None
    }
    paths = {
        name: local_source("--" + name.replace("_", "-"), value, weights=name != "text_tokenizer")
        for name, value in names.items()
    }
    return convert_showo(
        ShowoSources(**paths),
        options.output,
        dtype=dtype_of(options.dtype),
        max_shard_size=options.max_shard_size,
        overwrite=options.overwrite,
        verify=options.verify,
        num_image_tokens=options.num_image_tokens,
        origin=origin_of(names, paths["showo"], options.push_to_hub),
        with_code=options.with_code,
    )


def main(arguments: list[str] | None = None) -> int:
    return conversion_main(__doc__, add_convert_arguments, run, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
