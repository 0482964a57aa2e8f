"""
Training of a small classifier of images, transformers' ConvNeXt (arXiv:2201.03545), on labelled folders.

Its features make a perceptual loss where published weights are not at hand; see [`ClassifierFeatures`]. It has no batch
norm, so an image's features depend on that image alone.
"""

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import ConvNextConfig, ConvNextForImageClassification, TrainingArguments

from ..processing.processing_showo import showo_image_processor
from .data.examples import Example
from .data.loader import State
from .data.sources import DataSource, open_source
from .image_batches import ImageBuilder, Images, class_name, image_loader, validation_images
from .image_configs import ImageClassifierConfig
from .image_results import save_image_result
from .image_trainer import TASK, ImageTrainer
from .losses import LossSums
from .recipe_entries import nearest
from .resumable_trainer import Settings


#: A small ConvNeXt whose first features have half the size of the image, so that they see fine detail.
ARCHITECTURE = {"patch_size": 2, "hidden_sizes": [48, 96, 192, 384], "depths": [1, 1, 3, 1]}


class ImageClassifierTrainer(ImageTrainer):
    """
    Trains a classifier of images of transformers.

    Args:
        model, args, settings, data, validation, callbacks: see [`ImageTrainer`]. The images have labels.
        label_smoothing: how much of each label is spread over all classes.
    """

    LOSSES = ("class",)
    MEASURES = ("accuracy",)

    def __init__(self, *args: Any, label_smoothing: float = 0.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.label_smoothing = label_smoothing

    def losses(self, model: nn.Module, images: Images, sums: LossSums) -> dict[str, torch.Tensor]:
        """The cross-entropy of a batch, by name. It is added to `sums`, with the share of images that are right."""
        pixels, labels = images.pixel_values.to(self.args.device), images.labels.to(self.args.device)
        if not len(pixels):  # every device must take part in the backward pass
            return {"none": model(pixels.new_zeros(1, *pixels.shape[1:])).logits.sum() * 0.0}
        logits = model(pixels).logits.float()  # (batch, classes)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        sums.add(TASK, "class", loss, len(pixels))
        sums.add(TASK, "accuracy", (logits.argmax(-1) == labels).float().mean(), len(pixels))
        return {"class": loss}

    def validation_losses(self, model: nn.Module, images: Images, sums: LossSums):
        """The same, of the images whose class is known from training."""
        if len(images.pixel_values):
            self.losses(model, images, sums)


def classes_of(config: ImageClassifierConfig) -> list[str]:
    """
    The names of the classes in the training data, sorted.

    Raises:
        ValueError: if the data has no random access, or fewer than two classes.
    """
    names: set[str] = set()
    for listed in config.data.values():
        for one in listed:
            opened = open_source(DataSource(**one), config.task)
            if opened.table is None:
                raise ValueError(
                    f"`data` must have random access to find the classes, but '{opened.name}' is a stream."
                )
            rows = opened.table.select_columns("label") if opened.class_names is not None else opened.table
            texts = (opened.text_of(rows[number]) for number in range(len(rows)))
            names |= {class_name(Example("", 0, text=text)) for text in texts}
    if len(names) < 2:
        raise ValueError(f"`data` must have at least two classes, got {len(names)}: {', '.join(sorted(names))}.")
    return sorted(names)


def classifier_config(config: ImageClassifierConfig, classes: list[str]) -> ConvNextConfig:
    """
    The configuration of the trained classifier.

    Raises:
        ValueError: for an entry of `architecture` that does not exist.
    """
    known = [name for name in inspect.signature(ConvNextConfig).parameters if name not in ("id2label", "label2id")]
    for name in config.architecture:
        if name not in known or name == "image_size":
            raise ValueError(
                f"`architecture` must hold entries of `ConvNextConfig`, got {name!r}{nearest(name, known)}"
            )
    labels = dict(enumerate(classes))
    options = {**ARCHITECTURE, **config.architecture, "image_size": config.image_size}
    return ConvNextConfig(**options, id2label=labels, label2id={name: number for number, name in labels.items()})


def load_classifier(config: ImageClassifierConfig) -> ConvNextForImageClassification:
    """
    The classifier that is trained, in float32. Its random weights depend on `seed` alone.

    Raises:
        ValueError: if `model` has other classes than the data.
    """
    classes = classes_of(config)
    if config.model is not None:
        model = ConvNextForImageClassification.from_pretrained(config.model, dtype=torch.float32, use_safetensors=True)
        if sorted(model.config.label2id) != classes:
            raise ValueError(f"`model` must have the classes of `data`, {len(classes)}, '{config.model}' has others.")
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return ConvNextForImageClassification(classifier_config(config, classes))


def image_classifier_trainer(
    config: ImageClassifierConfig,
    args: TrainingArguments,
    model: ConvNextForImageClassification,
    settings: Settings,
    position: State | None,
    callbacks: list[Any],
) -> ImageClassifierTrainer:
    """The Trainer of a run that starts at a position in the data."""
    processor, classes = showo_image_processor(config.image_size), dict(model.config.label2id)
    data = image_loader(
        config,
        ImageBuilder(processor, config.mirror, config.shift, classes),
        rank=args.process_index,
        world_size=args.world_size,
        num_workers=args.dataloader_num_workers,
        state=position,
    )
    validation = validation_images(config, ImageBuilder(processor, classes=classes))
    smoothing = config.label_smoothing
    return ImageClassifierTrainer(model, args, settings, data, validation, callbacks, label_smoothing=smoothing)


def save_image_classifier(config: ImageClassifierConfig, trainer: ImageClassifierTrainer):
    """Write the output folder with the image processor and the card, and push it."""
    save_image_result(config, trainer, "image-classifier", config.model, config.image_size)
