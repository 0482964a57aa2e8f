"""The data of a concept: a few images of one thing, with texts that name it by its word."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .configs import ConceptConfig
from .data.sources import IMAGE_SUFFIXES, DataSource, OpenedSource


def concept_texts(config: ConceptConfig) -> list[str]:
    """The texts of the images: the templates with the word, and what kind of thing it is."""
    name = " ".join(part for part in (config.word.strip(), config.kind_of.strip()) if part)
    return [template.replace("{}", name) for template in config.templates]


def concept_source(config: ConceptConfig, task: str, source: Mapping[str, Any]) -> OpenedSource:
    """
    The images of a folder, each with all texts of the concept.

    Args:
        source: the fields of a [`DataSource`], whose `path` is the folder.

    Raises:
        ValueError: if the folder holds no images.
    """
    own = DataSource(**source)
    folder = Path(own.path)
    names = sorted(file.name for file in folder.glob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not names:
        raise ValueError(f"`data` must be a folder of images, got '{own.path}', which holds none.")
    rows = [{own.image_column: name, own.text_column: concept_texts(config)} for name in names]
    return OpenedSource(own, task, [own.image_column, own.text_column], table=rows, folders=[folder])
