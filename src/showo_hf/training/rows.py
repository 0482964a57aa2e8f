"""
From examples to rows of ids and labels, one part of a batch for each task.

Every random draw about a row comes from the row's own `noise_seed`, so a row does not depend on the batch, the process
or the worker that it is made in.
"""

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..models.losses import scored_positions
from ..processing.processing_showo import ShowoProcessor
from ..schedulers.masking_schedules import MaskingSchedule, cosine
from .data.examples import Example
from .masking import mask_tokens, row_generator


IGNORED = -100


@dataclass
class Part:
    """
    The rows of one task.

    Args:
        task: "t2i", "lm", "mmu" or "mixed".
        keys: names of the examples.
        examples: the examples, until their images are tokens.
        pixel_values: images that have no tokens yet, (images, 3, H, W) in [-1, 1], in the order of the examples.
        input_ids, labels: int64 (rows, length), once all images are tokens.
        counts: the number of labels of each loss, by "t2i", "lm" and "mmu".
        image_tokens: of text-to-image rows, the codebook indices without noise, (rows, tokens).
        noise_seeds: the seed of each row's noise.
    """

    task: str
    keys: list[str]
    examples: list[Example] = field(default_factory=list)
    pixel_values: torch.Tensor | None = None
    input_ids: torch.LongTensor | None = None
    labels: torch.LongTensor | None = None
    counts: dict[str, int] = field(default_factory=dict)
    image_tokens: torch.LongTensor | None = None
    noise_seeds: list[int] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.input_ids is not None


@dataclass
class RowBuilder:
    """
    Builds the parts of a batch. Data workers call it on examples; [`RowBuilder.finish`] adds images that the model
    encoded.

    Args:
        processor: builds the sequences.
        condition_dropout: share of the prompts that are emptied.
        image_dropout: in questions, a random share of the image tokens from 0 to this is masked.
        schedule: the share of masked tokens for u uniform in [0, 1].
        masked: mask the images of text-to-image rows. Without it `input_ids` hold the images as they are, for a loss
            that adds its own noise.
        max_length: conversations are cut to so many ids, before an image that would not be complete.
    """

    processor: ShowoProcessor
    condition_dropout: float = 0.1
    image_dropout: float = 0.0
    schedule: MaskingSchedule = cosine
    masked: bool = True
    max_length: int | None = None

    def __call__(self, examples: Mapping[str, Sequence[Example]]) -> dict[str, Part]:
        """The parts of a step's examples. Parts whose images have tokens already are complete."""
        return {task: self.part(task, list(rows)) for task, rows in examples.items()}

    def part(self, task: str, examples: list[Example]) -> Part:
        seeds = [example.noise_seed for example in examples]
        part = Part(task, [example.key for example in examples], examples, noise_seeds=seeds)
        images = [image for example in examples for image in images_of(example) if not is_tokens(image)]
        if not images:
            return self.finish(part)
        pixels = self.processor.image_processor(images=images, return_tensors="pt")
        part.pixel_values = pixels["pixel_values"]
        return part

    def finish(self, part: Part, image_tokens: torch.LongTensor | None = None) -> Part:
        """
        Complete a part.

        Args:
            image_tokens: codebook indices (images, h, w) of `part.pixel_values`, on the CPU.
        """
        encoded = iter(image_tokens if image_tokens is not None else ())
        grids = [
            [image if is_tokens(image) else next(encoded) for image in images_of(example)] for example in part.examples
        ]
        build: dict[str, Callable] = {"t2i": self.t2i, "lm": self.lm, "mmu": self.mmu, "mixed": self.mixed}
        part.examples, examples, part.pixel_values = [], part.examples, None
        if not examples:
            empty = torch.empty(0, 1, dtype=torch.long)
            part.input_ids, part.labels, part.counts = empty, empty, {}
            return part
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="A text of .* ids was cut")
            build[part.task](part, examples, grids)
        part.counts = label_counts(part.input_ids, part.labels, self.processor)
        return part

    # One method per task

    def t2i(self, part: Part, examples: list[Example], grids: list[list[torch.LongTensor]]):
        """Prompts followed by images. Only masked tokens have labels, or without masks all image tokens."""
        prompts, masks = [], []
        tokens = torch.stack([grid[0].flatten().long() for grid in grids])  # (rows, tokens)
        for example, row in zip(examples, tokens, strict=True):
            generator = row_generator(example.noise_seed)
            dropped = torch.rand((), generator=generator).item() < self.condition_dropout
            prompts.append("" if dropped else chosen_text(example))
            if self.masked:
                masks.append(mask_tokens(row[None], self.processor.codebook_size, generator, self.schedule)[1][0])
        ids = self.processor.text_to_image(prompts, tokens, padding="longest")["input_ids"]
        labelled = torch.zeros_like(ids, dtype=torch.bool)
        labelled[:, -tokens.shape[1] - 1 : -1] = torch.stack(masks) if self.masked else True  # before `eoi`
        part.input_ids = ids.masked_fill(labelled, self.processor.mask_token_id) if self.masked else ids
        part.labels = ids.masked_fill(~labelled, IGNORED)
        part.image_tokens = tokens

    def lm(self, part: Part, examples: list[Example], grids: list[list[torch.LongTensor]]):
        """Texts, as long as a text-to-image sequence at most."""
        processor = self.processor
        longest = processor.max_text_length + processor.num_image_tokens
        rows = [
            [processor.sot_token_id, *processor.text_ids(chosen_text(example))[:longest], processor.eot_token_id]
            for example in examples
        ]
        padded = processor.pad_rows(rows, side="right", labels=rows)
        part.input_ids, part.labels = padded["input_ids"], padded["labels"]

    def mmu(self, part: Part, examples: list[Example], grids: list[list[torch.LongTensor]]):
        """An image and its caption, or a conversation about it. Only the answers have labels."""
        rows, labels = [], []
        for example, images in zip(examples, grids, strict=True):
            if example.messages is None:
                made = self.processor.understanding([chosen_text(example)], [images[0]])
                ids, answers = made["input_ids"][0], made["labels"][0]
            else:
                ids, answers = self.conversation(example.messages, images)
            rows.append(self.hide(ids, row_generator(example.noise_seed)))
            labels.append(answers)
        part.input_ids, part.labels = pad(rows, self.processor.pad_token_id), pad(labels, IGNORED)

    def mixed(self, part: Part, examples: list[Example], grids: list[list[torch.LongTensor]]):
        """
        Conversations with generated images. Of a row, either the text has labels, or one generated image, which then
        ends the row.
        """
        rows, labels = [], []
        for example, images in zip(examples, grids, strict=True):
            if example.messages is None:
                raise ValueError(f"Examples of the task 'mixed' must have `messages`; '{example.key}' has none.")
            ids, answers = self.conversation(example.messages, images)
            rng = random.Random(example.noise_seed)
            opened = ((ids == self.processor.soi_token_id) & (answers != IGNORED)).nonzero().flatten().tolist()
            start = rng.choice(opened) if opened and rng.random() < 0.5 else None
            generator = row_generator(example.noise_seed)
            ids, answers = score_one_image(ids, answers, start, self.processor, generator, self.schedule)
            rows.append(ids)
            labels.append(answers)
        part.input_ids, part.labels = pad(rows, self.processor.pad_token_id), pad(labels, IGNORED)

    def conversation(
        self, messages: list[dict[str, Any]], images: list[torch.LongTensor]
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Ids and labels (length,) of a conversation. Only the assistant's part has labels."""
        filled = with_images(messages, images)
        inputs = self.processor.apply_chat_template(
            [filled], tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
        )
        ids = inputs["input_ids"][0]
        labels = torch.where(torch.as_tensor(inputs["assistant_masks"])[0].bool(), ids, IGNORED)
        kept = kept_length(ids, self.max_length, self.processor)
        return ids[:kept], labels[:kept]

    def hide(self, ids: torch.LongTensor, generator: torch.Generator) -> torch.LongTensor:
        """Mask a random share of a row's image tokens, so that no single token identifies the image."""
        if not self.image_dropout:
            return ids
        share = self.image_dropout * torch.rand((), generator=generator)
        hidden = torch.rand(ids.shape, generator=generator) < share
        return ids.masked_fill(hidden & is_image_token(ids, self.processor), self.processor.mask_token_id)


def chosen_text(example: Example) -> str:
    """The text of an example; of several, one that its noise seed draws."""
    if example.text is None:
        raise ValueError(f"The example '{example.key}' has no text.")
    if isinstance(example.text, str):
        return example.text
    return random.Random(example.noise_seed).choice(example.text)


def is_tokens(image: Any) -> bool:
    """Whether an image is a grid of image tokens."""
    return isinstance(image, torch.Tensor)


def images_of(example: Example) -> list[Any]:
    """The images of an example in the order of its sequence: the example's own, then those of its messages."""
    own = example.image_tokens if example.image_tokens is not None else example.image
    inside = [
        part["image"]
        for message in example.messages or ()
        for part in message["content"]
        if isinstance(part, dict) and part.get("type") == "image" and part.get("image") is not None
    ]
    return [*([own] if own is not None else []), *inside]


def with_images(messages: list[dict[str, Any]], images: list[torch.LongTensor]) -> list[dict[str, Any]]:
    """The messages with token grids in the place of their images, in order."""
    rest = iter(images)
    filled = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [
                {**part, "image": next(rest)} if isinstance(part, dict) and part.get("type") == "image" else part
                for part in content
            ]
        filled.append({**message, "content": content})
    return filled


def pad(rows: list[torch.LongTensor], value: int) -> torch.LongTensor:
    """Pad rows on the right to the longest."""
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def is_image_token(ids: torch.LongTensor, processor: ShowoProcessor) -> torch.BoolTensor:
    """True where ids are image tokens."""
    return (ids >= processor.image_token_offset) & (ids < processor.mask_token_id)


def label_counts(ids: torch.LongTensor, labels: torch.LongTensor, processor: ShowoProcessor) -> dict[str, int]:
    """The number of labels of each of the model's losses that has any."""
    counts = {name: int(scored.sum()) for name, scored in scored_positions(ids, labels, processor).items()}
    return {name: count for name, count in counts.items() if count}


def kept_length(ids: torch.LongTensor, longest: int | None, processor: ShowoProcessor) -> int:
    """How many of a row's ids (length,) are kept, so that there are at most `longest` and every image is complete."""
    if longest is None or len(ids) <= longest:
        return len(ids)
    kept = ids[:longest]
    opened = (kept == processor.soi_token_id).nonzero().flatten()
    if len(opened) and not bool((kept[opened[-1] :] == processor.eoi_token_id).any()):
        return int(opened[-1])
    return longest


def score_one_image(
    ids: torch.LongTensor,
    labels: torch.LongTensor,
    start: int | None,
    processor: ShowoProcessor,
    generator: torch.Generator,
    schedule: MaskingSchedule = cosine,
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """
    Mask tokens of the image that starts at `start`, end the row after it, and label the masked tokens alone.

    Of other images only `soi` has a label, because the model must predict where images start.

    Args:
        ids, labels: (length,); labels are -100 outside of the answers.
        start: position of the `soi` of the image. None masks no image.
    """
    labels = labels.masked_fill(is_image_token(ids, processor) | (ids == processor.eoi_token_id), IGNORED)
    if start is None:
        return ids, labels
    first, end = start + 1, start + int((ids[start:] == processor.eoi_token_id).nonzero()[0])
    tokens = ids[None, first:end]
    ids, labels = ids[: end + 1].clone(), labels[: end + 1].clone()
    noised, masked = mask_tokens(tokens, processor.mask_token_id, generator, schedule)
    ids[first:end] = noised[0]
    labels[first:end] = torch.where(masked, tokens, IGNORED)[0]
    return ids, labels
