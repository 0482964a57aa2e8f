"""The kinds of recipes."""

import dataclasses

from .configs import ConceptConfig, FinetuneConfig, LoraConfig, RunConfig, StageConfig
from .decoder_config import DiffusionDecoderConfig
from .image_configs import ImageClassifierConfig, LFQTrainingConfig, VQTrainingConfig


#: The config of each kind of recipe, by the entry `kind` of its file.
KINDS: dict[str, type[RunConfig]] = {
    "finetune": FinetuneConfig,
    "lora": LoraConfig,
    "concept": ConceptConfig,
    "stage": StageConfig,
    "lfq-tokenizer": LFQTrainingConfig,
    "vq-tokenizer": VQTrainingConfig,
    "image-classifier": ImageClassifierConfig,
    "diffusion-decoder": DiffusionDecoderConfig,
}


def config_keys(kind: str) -> dict[str, dataclasses.Field]:
    """The fields of a kind's config that a recipe may set, by name."""
    own = {one.name: one for one in dataclasses.fields(KINDS[kind])}
    return {name: one for name, one in own.items() if name not in ("recipe", "training")}
