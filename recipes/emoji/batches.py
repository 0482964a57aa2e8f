"""Training batches of all tasks: text to image, questions about images, text, and mixed conversations."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from recipes.emoji.captions import caption
from recipes.emoji.conversations import (
    Message,
    Scene,
    comparison,
    drawing,
    questions_about,
    restyling,
    small_talk,
    story,
)
from recipes.emoji.emoji import EmojiRecord
from showo_hf.processing.processing_showo import ShowoProcessor
from showo_hf.training.loop import Batch
from showo_hf.training.masking import drop_conditions, mask_tokens


TONELESS_SHARE = 0.5  # share of the version without skin tone in the draws of an emoji that has skin tones
TURNS = 3  # questions per image
HIDDEN_SHARE = 0.5  # largest share of image tokens that are masked in question rows
FULL_TEXT_SHARE = 0.5  # share of mixed rows that train the text; the others train one image
#: For a compiled model, lengths are padded to multiples of these, so that there are few different lengths.
COMPILED_MULTIPLES = {"image": 8, "text": 8, "question": 32, "mixed": 64}


@dataclass(frozen=True)
class Shares:
    """The number of rows of each task, relative to the batch size.

    Args:
        image: text to image.
        text: captions only. Their loss has a small weight and falls fast.
        question: an image and questions about it.
        mixed: conversations with generated images, or with several input images.
    """

    image: float = 1.0
    text: float = 0.25
    question: float = 0.0
    mixed: float = 0.0


TASKS = {"images": Shares(), "all": Shares(image=0.7, text=0.1, question=0.5, mixed=0.12)}
#: Loss weights. The weight of text-to-image is 1.
TEXT_WEIGHT, QUESTION_WEIGHT, MIXED_TEXT_WEIGHT, MIXED_IMAGE_WEIGHT = 0.1, 1.0, 0.5, 0.3


def draw_weights(records: list[EmojiRecord]) -> torch.Tensor:
    """
    The sampling weight of each record, (N,). Every emoji of a style has the same total weight over its skin tones.
    """
    tones: dict[tuple[str, str], int] = {}
    for record in records:
        key = (record.unified, record.style)
        tones[key] = tones.get(key, 0) + (record.tone is not None)

    def weight(record: EmojiRecord) -> float:
        count = tones[record.unified, record.style]
        if not count:
            return 1.0
        return TONELESS_SHARE if record.tone is None else (1 - TONELESS_SHARE) / count

    return torch.tensor([weight(record) for record in records])


@dataclass(frozen=True)
class TrainingSet:
    """The data of the batches.

    Args:
        records: the records of the training images.
        colours: the main colour of each image, or None.
        views: image tokens (views, N, h, w). The first view is the image itself, the others are shifted and scaled.
    """

    records: list[EmojiRecord]
    colours: list[str | None]
    views: torch.Tensor

    def scene(self, row: int, view: int = 0) -> Scene:
        """An image with its facts."""
        return Scene(self.records[row], self.colours[row], self.views[view, row].long())


class BatchMaker:
    """
    Makes the batch of a training step, with rows of all tasks.

    Args:
        data: the training data.
        processor: builds the sequences.
        batch_size: multiplied with `shares`, the number of rows of each task.
        shares: see [`Shares`].
        condition_dropout: share of the text-to-image rows with an empty prompt.
        hidden_share: in question rows, a random share of the image tokens from 0 to this is masked.
        compiled: pad the rows to few different lengths.
    """

    def __init__(
        self,
        data: TrainingSet,
        processor: ShowoProcessor,
        batch_size: int,
        shares: Shares = TASKS["images"],
        condition_dropout: float = 0.1,
        hidden_share: float = HIDDEN_SHARE,
        compiled: bool = False,
    ):
        self.data, self.processor = data, processor
        self.condition_dropout, self.hidden_share = condition_dropout, hidden_share
        self.counts = {name: math.ceil(batch_size * share) for name, share in vars(shares).items()}
        self.compiled = compiled
        self.weights = draw_weights(data.records)
        self.toneless = [record for record in data.records if record.tone is None]
        self.styles: dict[str, list[int]] = {}  # rows of each emoji without skin tones
        for row, record in enumerate(data.records):
            if record.tone is None:
                self.styles.setdefault(record.unified, []).append(row)

    def draw(self, count: int, generator: torch.Generator) -> list[int]:
        """Draw `count` rows of the data."""
        return torch.multinomial(self.weights, count, replacement=True, generator=generator).tolist()

    def __call__(self, generator: torch.Generator) -> Batch:
        makers = {
            "image": self.image_rows,
            "text": self.text_rows,
            "question": self.question_rows,
            "mixed": self.mixed_rows,
        }
        batch: Batch = {}
        for name, make in makers.items():
            if not self.counts[name]:
                continue
            rows = self.draw(self.counts[name], generator)
            rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
            ids, labels, side = make(rows, rng, generator)
            multiple = COMPILED_MULTIPLES[name] if self.compiled else 1
            batch[f"{name}_ids"] = widen(ids, self.processor.pad_token_id, side, multiple)
            batch[f"{name}_labels"] = widen(labels, -100, side, multiple)
        return batch

    # One method per task: maps rows of the data to ids, labels, and the padding side.

    def image_rows(self, rows: list[int], rng: random.Random, generator: torch.Generator):
        """Captions followed by images with masked tokens. Only masked tokens have labels."""
        texts = [caption(self.data.records[row], rng) for row in rows]
        tokens = self.data.views[0, rows].flatten(1).long()
        noised, _ = mask_tokens(tokens, self.processor.codebook_size, generator)
        prompts = drop_conditions(texts, self.condition_dropout, generator)
        sequences = partial(self.processor.text_to_image, prompts, padding="longest")
        ids = sequences(noised)["input_ids"]
        labels = sequences(tokens)["input_ids"].masked_fill(ids != self.processor.mask_token_id, -100)
        return ids, labels, "left"

    def text_rows(self, rows: list[int], rng: random.Random, generator: torch.Generator):
        """Captions."""
        text = self.processor.text_only([caption(self.data.records[row], rng) for row in rows])
        return text["input_ids"], text["labels"], "right"

    def question_rows(self, rows: list[int], rng: random.Random, generator: torch.Generator):
        """
        A view of an image and questions about it. Only the answers have labels.

        Some image tokens are masked, so that no single token identifies the image.
        """
        scenes = [self.data.scene(row, rng.randrange(len(self.data.views))) for row in rows]
        ids, labels = self.conversations([questions_about(scene, self.toneless, rng, TURNS) for scene in scenes])
        hidden = torch.rand(ids.shape, generator=generator) < self.hidden_share * torch.rand(
            len(ids), 1, generator=generator
        )
        return (
            ids.masked_fill(hidden & is_image_token(ids, self.processor), self.processor.mask_token_id),
            labels,
            "right",
        )

    def mixed_rows(self, rows: list[int], rng: random.Random, generator: torch.Generator):
        """Conversations with images. Either the text has labels, or one generated image, which then ends the row."""
        ids, labels = self.conversations([self.conversation(row, rng, generator) for row in rows])
        kept_ids, kept_labels = [], []
        for row_ids, row_labels in zip(ids, labels, strict=True):
            opened = ((row_ids == self.processor.soi_token_id) & (row_labels != -100)).nonzero().flatten().tolist()
            start = rng.choice(opened) if opened and rng.random() >= FULL_TEXT_SHARE else None
            row_ids, row_labels = score_one_image(row_ids, row_labels, start, self.processor, generator)
            kept_ids.append(row_ids)
            kept_labels.append(row_labels)
        pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
        return pad(kept_ids, padding_value=self.processor.pad_token_id), pad(kept_labels, padding_value=-100), "right"

    def conversation(self, row: int, rng: random.Random, generator: torch.Generator) -> list[Message]:
        """A random mixed conversation about a row of the data. Some conversations take a second, random row."""
        (other,) = self.draw(1, generator)
        views = len(self.data.views)
        same_thing = [found for found in self.styles.get(self.data.records[row].unified, ()) if found != row]
        makers: list[Callable[[], list[Message]]] = [
            lambda: drawing(self.data.scene(row), self.toneless, rng),
            lambda: story(self.data.scene(row), self.data.scene(self.in_style_of(row, other)), rng),
            lambda: comparison(
                self.data.scene(row, rng.randrange(views)), self.data.scene(other, rng.randrange(views)), rng
            ),
            lambda: small_talk(self.data.records[row], self.toneless, rng),
        ]
        weights = [4.0, 4.0, 2.0, 1.0]
        if same_thing:
            makers.append(lambda: restyling(self.data.scene(row), self.data.scene(rng.choice(same_thing)), rng))
            weights.append(2.0)
        return rng.choices(makers, weights)[0]()

    def in_style_of(self, row: int, other: int) -> int:
        """The emoji of row `other` in the style of `row`, if the data has it, else `other`."""
        style = self.data.records[row].style
        found = (
            r for r in self.styles.get(self.data.records[other].unified, ()) if self.data.records[r].style == style
        )
        return next(found, other)

    def conversations(self, messages: Sequence[list[Message]]) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Tokenize conversations to ids and labels (batch, longest), padded on the right. Only the answers have labels."""
        inputs = self.processor.apply_chat_template(
            list(messages),
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
            processor_kwargs={"padding_side": "right"},
        )
        ids = inputs["input_ids"]
        return ids, torch.where(torch.as_tensor(inputs["assistant_masks"]).bool(), ids, -100)


def is_image_token(ids: torch.LongTensor, processor: ShowoProcessor) -> torch.BoolTensor:
    """True where ids are image tokens."""
    return (ids >= processor.image_token_offset) & (ids < processor.mask_token_id)


def score_one_image(
    ids: torch.LongTensor,
    labels: torch.LongTensor,
    start: int | None,
    processor: ShowoProcessor,
    generator: torch.Generator,
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """
    Mask tokens of the image that starts at `start`, end the row after it, and label the masked tokens.

    Of the other images only `soi` has a label, because the model must predict where images start.

    Args:
        ids, labels: (length,); labels are -100 outside of the answers.
        start: position of the `soi` of the image. None masks no image.
    """
    labels = labels.masked_fill(is_image_token(ids, processor) | (ids == processor.eoi_token_id), -100)
    if start is None:
        return ids[ids != processor.pad_token_id], labels[ids != processor.pad_token_id]
    first, end = start + 1, start + 1 + processor.num_image_tokens
    tokens = ids[first:end][None]
    ids, labels = ids[: end + 1].clone(), labels[: end + 1].clone()
    noised, masked = mask_tokens(tokens, processor.mask_token_id, generator)
    ids[first:end] = noised[0]
    labels[first:end] = torch.where(masked, tokens, -100)[0]
    return ids, labels


def widen(rows: torch.LongTensor, fill: int, side: str, multiple: int) -> torch.LongTensor:
    """Pad rows (batch, length) on a side to the next multiple of a length."""
    missing = -rows.shape[1] % multiple
    return F.pad(rows, (missing, 0) if side == "left" else (0, missing), value=fill)


def compute_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The losses of all tasks. Each task has its own forward pass, because the lengths differ."""

    def run(name: str):
        return model(input_ids=batch[f"{name}_ids"], labels=batch[f"{name}_labels"], use_cache=False)

    images, text = run("image"), run("text")
    parts = {"t2i": images.loss_t2i, "lm": text.loss_lm}
    loss = images.loss_t2i + TEXT_WEIGHT * text.loss_lm
    if "question_ids" in batch:
        parts["mmu"] = run("question").loss_mmu
        loss = loss + QUESTION_WEIGHT * parts["mmu"]
    if "mixed_ids" in batch:
        mixed = run("mixed")
        # Text in rows that start with an image counts as answers (mmu), in other rows as text (lm).
        words = [part for part in (mixed.loss_lm, mixed.loss_mmu) if part is not None]
        parts["mixed"] = sum(words) / max(1, len(words)) if words else loss.new_zeros(())
        loss = loss + MIXED_TEXT_WEIGHT * parts["mixed"]
        if mixed.loss_t2i is not None:
            parts["mixed_t2i"] = mixed.loss_t2i
            loss = loss + MIXED_IMAGE_WEIGHT * mixed.loss_t2i
    return loss, parts
