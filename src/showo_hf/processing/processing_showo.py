"""The processor of Show-o: text and images to one token sequence, and token ids back to text."""

import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BatchFeature, CLIPImageProcessorPil, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from ..models.configuration_showo import SPECIAL_TOKEN_ARGUMENTS, SPECIAL_TOKEN_NAMES
from ..utils.validation import check_choice, check_count, check_equal_length, check_texts
from .images import flatten_images, is_token_grid, load_image
from .known_words import check_known_words
from .processor_kwargs import (
    MAX_LENGTH,
    ShowoProcessorKwargs,
    check_image_sizes,
    check_template_kwargs,
    check_template_options,
    image_kwarg_names,
    padded_length,
    row_limits,
    split_kwargs,
    template_of_this_thread,
    truncated_range,
)
from .sequence_checks import (
    check_conversation,
    check_grids,
    check_numbers,
    check_parts,
    check_sequences,
    check_template,
)


PAD_TOKEN = "[PAD]"
SPECIAL_TOKENS = tuple(f"<|{name}|>" for name in SPECIAL_TOKEN_NAMES)
#: Held while a tokenizer encodes. Each call writes its settings (special tokens as text or not, padding, truncation)
#: into the shared backend, so another thread could change them before the backend reads them. The lock belongs to the
#: module because a processor must stay copyable and picklable.
TOKENIZER_LOCK = threading.RLock()


def add_showo_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """
    Append `[PAD]` and Show-o's nine special tokens to a text tokenizer's vocabulary, in the published order.

    Tokens that exist already are not added again. The tokenizer's `bos` and `eos` tokens serve as `sot` and `eot`.
    """
    if tokenizer.pad_token != PAD_TOKEN:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in SPECIAL_TOKENS if token not in known], special_tokens=True)
    return tokenizer


def showo_image_processor(size: int) -> CLIPImageProcessorPil:
    """
    The image processor of the image tokenizer.

    It resizes the shorter edge to `size`, crops the center to `size` x `size`, and scales pixels to [-1, 1].
    """
    return CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def read_chat_template(name: str) -> str:
    """The text of the package's chat template `name`: "discrete" or "clip"."""
    return (Path(__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


class ShowoProcessor(ProcessorMixin):
    r"""
    Combines the text tokenizer and the image processor of a Show-o model, and builds the model's sequences.

    - Text-to-image: `[PAD]* t2i sot text eot soi image eoi`
    - Understanding: `mmu soi image eoi sot text eot [PAD]*`
    - Text: `sot text eot [PAD]*`
    - Mixed: `sot (text | soi image eoi)* eot [PAD]*`
    - Conversations: see [`~ShowoProcessor.apply_chat_template`]

    Threads can share a processor.

    Args:
        image_processor: a CLIP-style image processor with mean and standard deviation 0.5; see
            [`showo_image_processor`].
        tokenizer: a text tokenizer with Show-o's special tokens; see [`add_showo_tokens`].
        chat_template (`str`, *optional*): a Jinja template. By default the template for discrete image tokens or, with
            a `vision_processor`, for CLIP features.
        codebook_size (`int`, defaults to 8192): number of image tokens in the codebook. Their ids follow the
            tokenizer's ids.
        num_image_tokens (`int`, defaults to 256): tokens per image at the trained size.
        max_text_length (`int`, defaults to 128): maximum number of ids of a text, including `sot` and `eot`. Longer
            texts are truncated.
        vision_processor (`CLIPImageProcessorPil` or `dict`, *optional*): the image processor of the vision tower, for
            models that have one. Input images then go through it.
        num_image_features (`int`, *optional*): number of features that the vision tower returns per image. Required
            with `vision_processor`.
        known_words (`dict[str, list[str]]`, *optional*): words and phrases by group, of a model that knows no others.
            Pipelines warn if the prompt of an image has none of them. A turn of a conversation or a question needs none.

    Raises:
        TypeError: for a part of another class, and if `known_words` is not a dict of lists of words.
        ValueError: for numbers out of range, if the tokenizer lacks special tokens, or if only one of
            `vision_processor` and `num_image_features` is given.
    """

    valid_processor_kwargs = ShowoProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        codebook_size: int = 8192,
        num_image_tokens: int = 256,
        max_text_length: int = 128,
        vision_processor: CLIPImageProcessorPil | dict | None = None,
        num_image_features: int | None = None,
        known_words: dict[str, list[str]] | None = None,
        **kwargs,
    ):
        check_parts(image_processor, tokenizer, chat_template, vision_processor, num_image_features)
        check_numbers(codebook_size, num_image_tokens, max_text_length)
        self.codebook_size = codebook_size
        self.num_image_tokens = num_image_tokens
        self.max_text_length = max_text_length
        if isinstance(vision_processor, dict):  # from a saved file
            vision_processor = CLIPImageProcessorPil.from_dict(vision_processor)
        self.vision_processor: CLIPImageProcessorPil | None = vision_processor
        self.num_image_features = num_image_features
        self.known_words = check_known_words(known_words)
        if chat_template is None:
            chat_template = read_chat_template("discrete" if vision_processor is None else "clip")
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in (PAD_TOKEN, *SPECIAL_TOKENS) if token not in vocabulary]
        if missing:
            raise ValueError(
                f"`tokenizer` lacks {missing}; see `showo_hf.processing.processing_showo.add_showo_tokens`."
            )
        self.image_token_offset = len(tokenizer)
        self.mask_token_id = self.image_token_offset + codebook_size
        self.pad_token_id = vocabulary[PAD_TOKEN]
        self.sot_token_id, self.eot_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        for name, token in zip(SPECIAL_TOKEN_NAMES, SPECIAL_TOKENS, strict=True):
            setattr(self, f"{name}_token_id", vocabulary[token])
        self.image_token = "<|sov|>"  # the placeholder of an image in a text
        self.image_token_id = self.sov_token_id

    def special_token_ids(self) -> dict[str, int]:
        """The ids of the special tokens, keyed by their argument names in [`ShowoConfig`]."""
        return {name: getattr(self, name) for name in SPECIAL_TOKEN_ARGUMENTS}

    # Parts of a sequence

    def tokenize(self, text: str | list[str], **options) -> dict[str, Any]:
        """Call the tokenizer, safely in threads. By default it adds no special tokens."""
        with TOKENIZER_LOCK:
            return self.tokenizer(text, **({"add_special_tokens": False} | options))

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text, without `sot` and `eot`. Names of special tokens in it are encoded as plain text."""
        return self.tokenize(text, split_special_tokens=True)["input_ids"]

    def closed_text_ids(self, text: str) -> list[int]:
        """Ids of `sot text eot`. Warns about a text that exceeds `max_text_length` and drops its end."""
        ids = self.text_ids(text)
        kept = self.max_text_length - 2
        if len(ids) > kept:
            warnings.warn(
                f"A text of {len(ids)} ids was cut to the {kept} that `max_text_length` leaves it: {text[:60]!r}...",
                stacklevel=3,
            )
        return [self.sot_token_id, *ids[:kept], self.eot_token_id]

    def image_ids(self, image_tokens: torch.LongTensor | None, num_image_tokens: int | None = None) -> list[int]:
        """
        Ids of the image block `soi image eoi`.

        Args:
            image_tokens: codebook indices of any shape, int64 in [0, `codebook_size`], where `codebook_size` means
                masked. None makes a fully masked image.
            num_image_tokens: length of a fully masked image, the trained one by default.

        Raises:
            ValueError: if a token is out of range.
        """
        if image_tokens is None:
            ids = [self.mask_token_id] * (self.num_image_tokens if num_image_tokens is None else num_image_tokens)
        elif image_tokens.min() < 0 or image_tokens.max() > self.codebook_size:
            raise ValueError(
                f"`image_tokens` must be from 0 to {self.codebook_size - 1}, or {self.codebook_size} where masked, "
                f"got {image_tokens.min().item()} to {image_tokens.max().item()}."
            )
        else:
            ids = (image_tokens.reshape(-1) + self.image_token_offset).tolist()
        return [self.soi_token_id, *ids, self.eoi_token_id]

    def placeholder_ids(self) -> list[int]:
        """Ids of `soi placeholder* eoi`. The model replaces the placeholders by the image of `pixel_values`."""
        return [self.soi_token_id, *[self.image_token_id] * self.num_placeholders, self.eoi_token_id]

    @property
    def num_placeholders(self) -> int:
        """Positions of an input image: the number of features of the vision tower, or else of image tokens."""
        return self.num_image_features or self.num_image_tokens

    # Sequences

    def text_to_image_prefix(self, prompts: Sequence[str]) -> BatchFeature:
        """
        Sequences `[PAD]* t2i sot text eot`, padded on the left to the longest.

        The last position is always `max_text_length`, so the image starts at position `max_text_length + 1` for every
        length of the prompt.

        Returns:
            `input_ids`, `attention_mask` and `position_ids`, int64 of shape (batch, longest).
        """
        rows = [[self.t2i_token_id, *self.closed_text_ids(prompt)] for prompt in check_texts("prompts", prompts)]
        batch = self.pad_rows(rows, side="left")
        length = batch["input_ids"].shape[1]
        end = self.max_text_length + 1
        batch["position_ids"] = torch.arange(end - length, end).expand(len(rows), -1)
        return batch

    def text_to_image(
        self,
        prompts: Sequence[str],
        image_tokens: Sequence[torch.LongTensor] | torch.LongTensor | None = None,
        num_image_tokens: int | None = None,
        padding: str = "max_length",
    ) -> BatchFeature:
        """
        Complete text-to-image sequences.

        Args:
            prompts: one text per row.
            image_tokens: each row's image tokens, as for `image_ids`. None makes fully masked images.
            num_image_tokens: tokens of a fully masked image, the trained number by default.
            padding: "max_length" pads the text part to `max_text_length + 1`, "longest" to the longest of the batch.

        Returns:
            `input_ids` and `attention_mask`, int64 of shape (batch, length). With `image_tokens` also `labels`: the
            ids, and -100 at pads.

        Raises:
            ValueError: if `prompts` and `image_tokens` differ in length, the images differ in size, or `padding` is
                unknown.
        """
        prompts = check_texts("prompts", prompts)
        check_choice("padding", padding, ("max_length", "longest"))
        if num_image_tokens is not None:
            check_count("num_image_tokens", num_image_tokens, most=MAX_LENGTH)
        grids = [None] * len(prompts) if image_tokens is None else check_grids("image_tokens", image_tokens)
        check_equal_length(prompts=prompts, image_tokens=grids)
        images = [self.image_ids(grid, num_image_tokens) for grid in grids]
        sizes = [len(image) for image in images]
        if len(set(sizes)) > 1:
            raise ValueError(f"`image_tokens` must be equally many in each row, got {[n - 2 for n in sizes]}.")
        rows = [
            [self.t2i_token_id, *self.closed_text_ids(prompt), *image]
            for prompt, image in zip(prompts, images, strict=True)
        ]
        length = self.max_text_length + 1 + sizes[0] if padding == "max_length" else None
        return self.pad_rows(rows, side="left", length=length, labels=rows if image_tokens is not None else None)

    def understanding(
        self,
        texts: Sequence[str],
        image_tokens: Sequence[torch.LongTensor] | torch.LongTensor,
        length: int | None = None,
    ) -> BatchFeature:
        """
        Training sequences `mmu soi image eoi sot text eot [PAD]*`, with labels on `sot text eot`.

        Returns:
            `input_ids`, `attention_mask` and `labels`, int64 of shape (batch, `length` or the longest).
        """
        texts = check_texts("texts", texts)
        check_equal_length(texts=texts, image_tokens=check_grids("image_tokens", image_tokens))
        rows, labels = [], []
        for text, grid in zip(texts, image_tokens, strict=True):
            image = [self.mmu_token_id, *self.image_ids(grid)]
            closed = self.closed_text_ids(text)
            rows.append(image + closed)
            labels.append([-100] * len(image) + closed)
        return self.pad_rows(rows, side="right", length=length, labels=labels)

    def text_only(self, texts: Sequence[str], length: int | None = None) -> BatchFeature:
        """Sequences `sot text eot [PAD]*` with labels on every id: `input_ids`, `attention_mask` and `labels`."""
        rows = [self.closed_text_ids(text) for text in check_texts("texts", texts)]
        return self.pad_rows(rows, side="right", length=length, labels=rows)

    def mixed(self, sequences: Sequence[Sequence[str | torch.LongTensor]], length: int | None = None) -> BatchFeature:
        """
        Sequences `sot (text | soi image eoi)* eot [PAD]*` with labels on every id, returned as in `understanding`.

        Args:
            sequences: rows of texts and token grids, in any order.
        """
        rows = []
        for parts in check_sequences(sequences):
            row = [self.sot_token_id]
            for part in parts:
                row += self.text_ids(part) if isinstance(part, str) else self.image_ids(part)
            rows.append([*row, self.eot_token_id])
        return self.pad_rows(rows, side="right", length=length, labels=rows)

    def pad_rows(
        self,
        rows: Sequence[Sequence[int]],
        side: str,
        length: int | None = None,
        labels: Sequence[Sequence[int]] | None = None,
    ) -> BatchFeature:
        """
        Pad rows of ids, and of labels, to tensors.

        Args:
            rows, labels: ids and labels of each row. Labels are padded with -100.
            side: the side of the pads, "left" or "right".
            length: length of the result, by default the longest row's.

        Returns:
            `input_ids`, `attention_mask` and, with `labels`, `labels`, int64 of shape (batch, length).

        Raises:
            ValueError: if `side` is unknown or a row exceeds `length`.
        """
        check_choice("side", side, ("left", "right"))
        if length is not None:
            check_count("length", length, most=MAX_LENGTH)
        longest = max(len(row) for row in rows)
        length = longest if length is None else length
        if longest > length:
            raise ValueError(f"`length` must hold the longest row of {longest} ids, got {length}.")

        ids = [self.padded(row, self.pad_token_id, length, side) for row in rows]
        seen = [self.padded([1] * len(row), 0, length, side) for row in rows]
        data = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(seen)}
        if labels is not None:
            data["labels"] = torch.tensor([self.padded(row, -100, length, side) for row in labels])
        return BatchFeature(data)

    @staticmethod
    def padded(row: Sequence, fill, length: int, side: str) -> list:
        """`row` with `fill` added on the side "left" or "right" up to `length` entries. Longer rows are unchanged."""
        pads = [fill] * (length - len(row))
        return [*pads, *row] if side == "left" else [*row, *pads]

    # The interface of transformers' processors

    def __call__(self, images=None, text=None, **kwargs) -> BatchFeature:
        r"""
        Convert texts with placeholders, and their images, to model inputs.

        Args:
            images: an image or a (nested) list of images, in the order of the placeholders: PIL images, arrays,
                tensors, paths, URLs or base64; see [`images.load_image`]. With a vision tower its image processor
                makes the pixels, otherwise the image tokenizer's. An int64 tensor (h, w) is a token grid and becomes
                part of the ids.
            text (`str` or `list[str]`): each `<|sov|>` in it stands for an image.
            padding (`bool` or `str`, defaults to `True`): True or "longest", "max_length", False or "do_not_pad".
            truncation (`bool` or `str`, defaults to `False`): True or "longest_first" cuts rows to `max_length` on the
                tokenizer's `truncation_side`.
            max_length (`int`, *optional*): ids of a row, image blocks included, for `truncation` and
                `padding="max_length"`. Defaults to the tokenizer's `model_max_length`.
            padding_side (`str`, *optional*): "left" or "right". By default "left", as generation requires.
            return_tensors (`str`, *optional*, defaults to "pt"): "pt", "np", or None for Python lists.
            pad_to_multiple_of, add_special_tokens, return_attention_mask, return_offsets_mapping: see transformers.
                In `offset_mapping`, every id of an image has the span of its placeholder, and a pad has (0, 0).
            sanitize_control_tokens, return_text_replacement_offsets: set by `apply_chat_template`.
            text_kwargs, images_kwargs (`dict`, *optional*): the arguments above; and those of the image processor,
                such as `do_rescale`, which can also be passed directly.

        Returns:
            `input_ids` and `attention_mask`, int64 of shape (batch, length), and `pixel_values` (images, 3, H, W).

        Raises:
            TypeError: for an unknown keyword argument or an input of a wrong type.
            ValueError: for an image that cannot be read; if the numbers of images and placeholders differ; if
                truncation would cut an image; if image options change the number of image positions.
        """
        text_options, image_options = split_kwargs(kwargs, image_kwarg_names(self.input_image_processor))
        limits = row_limits(text_options, self.tokenizer.model_max_length)
        if images is None and text is None:
            raise ValueError("Give `text`, `images` or both.")
        texts = None if text is None else check_texts("text", text)
        loaded = [image if is_token_grid(image) else load_image(image, "images") for image in flatten_images(images)]
        pixels = [image for image in loaded if not is_token_grid(image)]
        data = self.image_inputs(pixels, image_options, with_text=texts is not None)
        if texts is not None:
            data |= self.text_inputs(texts, loaded, text_options, *limits)
        return BatchFeature(
            data,
            tensor_type=text_options["return_tensors"],
            skip_tensor_conversion=["offset_mapping", "text_replacement_offsets"],
        )

    @property
    def input_image_processor(self) -> CLIPImageProcessorPil:
        """The processor of images that the model reads: the vision tower's, or else the image tokenizer's."""
        return self.vision_processor or self.image_processor

    def image_inputs(self, images: list, options: dict[str, Any], with_text: bool) -> dict[str, Any]:
        """`pixel_values` of PIL images, nothing without images. With text, all images must have the usual size."""
        if not images:
            return {}
        inputs = dict(self.input_image_processor(images, **({"return_tensors": "pt"} | options)))
        if with_text and options:
            check_image_sizes(inputs["pixel_values"], self.input_image_processor)
        return inputs

    def text_inputs(
        self, texts: list[str], images: list, options: dict[str, Any], max_length: int | None, pad_length: int | None
    ) -> dict[str, list]:
        """The part of `__call__`'s result that has a row per text, as lists. `images` replace the placeholders."""
        names = ("add_special_tokens", "sanitize_control_tokens", "return_offsets_mapping")
        encoded = self.tokenize(texts, **{name: options[name] for name in names})
        count = sum(row.count(self.image_token_id) for row in encoded["input_ids"])
        if count != len(images):
            raise ValueError(f"`text` has {count} placeholders {self.image_token!r}, and got {len(images)} `images`.")
        blocks = iter([self.image_ids(image) if is_token_grid(image) else self.placeholder_ids() for image in images])
        parts = [
            [next(blocks) if token == self.image_token_id else [token] for token in row]
            for row in encoded["input_ids"]
        ]
        kept = [truncated_range(row, max_length, self.tokenizer.truncation_side) for row in parts]
        parts = [row[part] for row, part in zip(parts, kept, strict=True)]
        rows = [[token for part in row for token in part] for row in parts]
        length = padded_length(rows, pad_length, options["pad_to_multiple_of"])
        side = options["padding_side"]

        data = {"input_ids": [self.padded(row, self.pad_token_id, length, side) for row in rows]}
        if options["return_attention_mask"]:
            data["attention_mask"] = [self.padded([1] * len(row), 0, length, side) for row in rows]
        if options["return_offsets_mapping"]:
            spans = [
                [span for span, ids in zip(row_spans[part], row, strict=True) for _ in ids]
                for row_spans, part, row in zip(encoded["offset_mapping"], kept, parts, strict=True)
            ]
            data["offset_mapping"] = [self.padded(row, (0, 0), length, side) for row in spans]
        if options["return_text_replacement_offsets"]:
            data["text_replacement_offsets"] = [[] for _ in rows]  # the text stays as it is: ids replace ids
        return data

    def apply_chat_template(
        self, conversation, chat_template: str | None = None, sanitize_control_tokens: bool | None = None, **kwargs
    ):
        r"""
        Convert a conversation, or a list of conversations, to a prompt, as in transformers.

        With discrete image tokens a prompt is `mmu (soi image eoi)* sot` and `"USER: \n{question} ASSISTANT:"`, and
        the images of the first message come first. With CLIP features it is `mmu`, the system prompt,
        `soi features eoi` and `"USER: {question} ASSISTANT:"`. Each answer ends with `eot`, and the next turn follows
        directly.

        Args:
            conversation: messages `{"role": "user" | "assistant" | "system", "content": ...}`. The content is a text
                or a list of `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}` (or "path", "url",
                "base64"). An image is anything that [`~ShowoProcessor.__call__`] accepts, including a token grid.
            sanitize_control_tokens (`bool`, *optional*): encode names of special tokens in messages as plain text. By
                default this happens with `tokenize=True`, unless `return_assistant_tokens_mask` is set.
            tokenize, return_dict, add_generation_prompt, continue_final_message, return_assistant_tokens_mask, ...:
                see transformers. The default padding side is left.
            processor_kwargs (`dict`, *optional*): arguments of [`~ShowoProcessor.__call__`]. They can also be passed
                directly.

        Raises:
            TypeError: for an unknown keyword argument or an image of a wrong type.
            ValueError: for images that cannot be read. Jinja raises its own errors for unknown roles and parts.
        """
        check_conversation(conversation)
        check_template(chat_template, sanitize_control_tokens)
        templates = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        chat_template = templates.get(chat_template or "default", chat_template)
        check_template_kwargs(chat_template, kwargs, image_kwarg_names(self.input_image_processor))
        check_template_options(conversation, kwargs)
        marks_answers = kwargs.get("return_assistant_tokens_mask")
        if sanitize_control_tokens is None:
            sanitize_control_tokens = kwargs.get("tokenize", False) and not marks_answers
        if marks_answers and chat_template:
            chat_template = template_of_this_thread(chat_template)
        return super().apply_chat_template(
            conversation, chat_template, sanitize_control_tokens=sanitize_control_tokens, **kwargs
        )

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]
