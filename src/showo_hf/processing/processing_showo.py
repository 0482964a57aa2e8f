"""Text and images to one token sequence, and back."""

import warnings
from collections.abc import Sequence

import torch
from transformers import BatchFeature, CLIPImageProcessorPil, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from ..models.configuration_showo import SPECIAL_TOKEN_ARGUMENTS, SPECIAL_TOKEN_NAMES
from .chat_templates import CLIP_TEMPLATE, DISCRETE_TEMPLATE
from .images import flatten_images, is_token_grid, load_image


PAD_TOKEN = "[PAD]"
SPECIAL_TOKENS = tuple(f"<|{name}|>" for name in SPECIAL_TOKEN_NAMES)


def add_showo_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """
    Add `[PAD]` and Show-o's nine special tokens behind a text tokenizer's vocabulary, in the published order.

    A tokenizer that has them already is left as it is. Its `bos` and `eos` tokens serve as `sot` and `eot`.
    """
    if tokenizer.pad_token != PAD_TOKEN:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in SPECIAL_TOKENS if token not in known], special_tokens=True)
    return tokenizer


def showo_image_processor(size: int) -> CLIPImageProcessorPil:
    """Images to the image tokenizer's pixels in [-1, 1]: the shorter edge resized to `size`, the middle cut out."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


class ShowoProcessor(ProcessorMixin):
    r"""
    Text tokenizer and image processor of a Show-o model, and the builder of its sequences.

    Text-to-image: `[PAD]* t2i sot text eot soi image eoi`. Understanding: `mmu soi image eoi sot text eot [PAD]*`.
    Text: `sot text eot [PAD]*`. Mixed: `sot (text | soi image eoi)* eot [PAD]*`. Conversations: see
    [`~ShowoProcessor.apply_chat_template`].

    Args:
        image_processor: a CLIP-style image processor with mean and standard deviation 0.5; see
            [`showo_image_processor`].
        tokenizer: a text tokenizer with Show-o's special tokens; see [`add_showo_tokens`].
        codebook_size (`int`, defaults to 8192): number of image codes; their ids follow the tokenizer's.
        num_image_tokens (`int`, defaults to 256): tokens of an image at the trained size.
        max_text_length (`int`, defaults to 128): ids of a text with its `sot` and `eot`; longer ones are cut.
        vision_processor (`CLIPImageProcessorPil` or `dict`, *optional*): for the variant with a vision tower, the tower's
            own image processor; images that are read go through it then, and those that are made do not.
        num_image_features (`int`, *optional*): features that the tower gives for an image; goes with `vision_processor`.

    Raises:
        ValueError: if the tokenizer lacks special tokens, or `vision_processor` and `num_image_features` are not given
            together.
    """

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
        **kwargs,
    ):
        if (vision_processor is None) != (num_image_features is None):
            raise ValueError(
                "`vision_processor` and `num_image_features` must be given together, "
                f"got {type(vision_processor).__name__} and {num_image_features}."
            )
        self.codebook_size = codebook_size
        self.num_image_tokens = num_image_tokens
        self.max_text_length = max_text_length
        if isinstance(vision_processor, dict):
            vision_processor = CLIPImageProcessorPil.from_dict(vision_processor)  # as a saved file has it
        self.vision_processor: CLIPImageProcessorPil | None = vision_processor
        self.num_image_features = num_image_features
        if chat_template is None:
            chat_template = DISCRETE_TEMPLATE if vision_processor is None else CLIP_TEMPLATE
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
        self.image_token = "<|sov|>"  # placeholder of an image in a text
        self.image_token_id = self.sov_token_id

    def special_token_ids(self) -> dict[str, int]:
        """The special tokens' ids by the name of their argument in a [`ShowoConfig`]."""
        return {name: getattr(self, name) for name in SPECIAL_TOKEN_ARGUMENTS}

    # Parts of a sequence

    def text_ids(self, text: str) -> list[int]:
        """Ids of a text without `sot` and `eot`; names of special tokens in it are read as plain text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def closed_text_ids(self, text: str) -> list[int]:
        """`sot text eot`, at most `max_text_length` ids; a longer text keeps its beginning, with a warning."""
        ids = self.text_ids(text)
        kept = self.max_text_length - 2
        if len(ids) > kept:
            warnings.warn(
                f"A text of {len(ids)} ids was cut to the {kept} that `max_text_length` leaves it: {text[:60]!r}...",
                stacklevel=3,
            )
        return [self.sot_token_id, *ids[:kept], self.eot_token_id]

    def image_ids(self, image_tokens: torch.LongTensor | None, num_image_tokens: int | None = None) -> list[int]:
        """`soi image eoi` of a grid of codes; unknown where a code is `codebook_size`, or everywhere for None."""
        if image_tokens is None:
            codes = [self.mask_token_id] * (num_image_tokens or self.num_image_tokens)
        elif image_tokens.min() < 0 or image_tokens.max() > self.codebook_size:
            raise ValueError(
                f"`image_tokens` must be from 0 to {self.codebook_size - 1}, or {self.codebook_size} where unknown, "
                f"got {image_tokens.min().item()} to {image_tokens.max().item()}."
            )
        else:
            codes = (image_tokens.reshape(-1) + self.image_token_offset).tolist()
        return [self.soi_token_id, *codes, self.eoi_token_id]

    def placeholder_ids(self) -> list[int]:
        """`soi placeholder* eoi`, where the model puts the tokens or features of `pixel_values`."""
        return [self.soi_token_id, *[self.image_token_id] * self.num_placeholders, self.eoi_token_id]

    @property
    def num_placeholders(self) -> int:
        """Positions of an image that is read: its codes, or the tower's features."""
        return self.num_image_features or self.num_image_tokens

    # Sequences

    def text_to_image_prefix(self, prompts: Sequence[str]) -> BatchFeature:
        """
        `[PAD]* t2i sot text eot`, padded on the left to the longest.

        The positions are those of a text part of full length, `max_text_length + 1`, so an image that follows starts
        at that position however short the text is.

        Returns:
            `input_ids`, `attention_mask` and `position_ids`, (batch, longest).
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
        Whole text-to-image sequences.

        Args:
            prompts: one text a row.
            image_tokens: codes of each row's image, of any grid shape; unknown everywhere where it is None.
            num_image_tokens: tokens of an unknown image; the trained number by default.
            padding: "max_length" pads the text to full length, "longest" to the longest of the batch.

        Returns:
            `input_ids` and `attention_mask` (batch, length); with `image_tokens` also `labels`, the ids with -100 at pads.
        """
        prompts = check_texts("prompts", prompts)
        if padding not in ("max_length", "longest"):
            raise ValueError(f"`padding` must be 'max_length' or 'longest', got {padding!r}.")
        grids = image_tokens if image_tokens is not None else [None] * len(prompts)
        check_equal_length(prompts=prompts, image_tokens=grids)
        rows = [
            [self.t2i_token_id, *self.closed_text_ids(prompt), *self.image_ids(grid, num_image_tokens)]
            for prompt, grid in zip(prompts, grids, strict=True)
        ]
        images = [len(self.image_ids(grid, num_image_tokens)) for grid in grids]
        if len(set(images)) > 1:
            raise ValueError(f"`image_tokens` must be equally many in each row, got {[n - 2 for n in images]}.")
        length = self.max_text_length + 1 + images[0] if padding == "max_length" else None
        return self.pad_rows(rows, side="left", length=length, labels=rows if image_tokens is not None else None)

    def understanding(
        self,
        texts: Sequence[str],
        image_tokens: Sequence[torch.LongTensor] | torch.LongTensor,
        length: int | None = None,
    ) -> BatchFeature:
        """
        `mmu soi image eoi sot text eot [PAD]*` with labels on the text, for training.

        Returns:
            `input_ids`, `attention_mask` and `labels`, (batch, `length` or the longest).
        """
        texts = check_texts("texts", texts)
        check_equal_length(texts=texts, image_tokens=image_tokens)
        rows, labels = [], []
        for text, grid in zip(texts, image_tokens, strict=True):
            image = [self.mmu_token_id, *self.image_ids(grid)]
            closed = self.closed_text_ids(text)
            rows.append(image + closed)
            labels.append([-100] * len(image) + closed)
        return self.pad_rows(rows, side="right", length=length, labels=labels)

    def text_only(self, texts: Sequence[str], length: int | None = None) -> BatchFeature:
        """`sot text eot [PAD]*` with labels on all of it: `input_ids`, `attention_mask`, `labels`."""
        rows = [self.closed_text_ids(text) for text in check_texts("texts", texts)]
        return self.pad_rows(rows, side="right", length=length, labels=rows)

    def mixed(self, sequences: Sequence[Sequence[str | torch.LongTensor]], length: int | None = None) -> BatchFeature:
        """
        `sot (text | soi image eoi)* eot [PAD]*` with labels on all of it.

        Args:
            sequences: rows of texts and grids of codes in any order.
        """
        rows = []
        for parts in sequences:
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
        """Rows of ids (and of labels) to tensors of one length, padded on the `side` "left" or "right"."""
        if side not in ("left", "right"):
            raise ValueError(f"The padding side must be 'left' or 'right', got {side!r}.")
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
        """`row` filled up with `fill` to `length` entries on the side "left" or "right"."""
        pads = [fill] * (length - len(row))
        return [*pads, *row] if side == "left" else [*row, *pads]

    # transformers' calls

    def __call__(
        self,
        images=None,
        text=None,
        padding_side: str = "left",
        sanitize_control_tokens: bool = False,
        return_offsets_mapping: bool = False,
        **kwargs,
    ) -> BatchFeature:
        """
        Texts with placeholders, and their images, to model inputs.

        Args:
            images: an image or a (nested) list of images, in the order of the placeholders: PIL, arrays, tensors,
                paths, URLs; see [`images.load_image`]. With a vision tower they become its pixels, otherwise the
                image tokenizer's. An int64 tensor (h, w) is a grid of codes, which goes into the ids.
            text (`str` or `list[str]`): each `<|sov|>` in it stands for an image.
            padding_side (`str`): "left", for generation, or "right".
            sanitize_control_tokens, return_offsets_mapping: set by `apply_chat_template`.

        Returns:
            `input_ids`, `attention_mask` (batch, length) and `pixel_values` (images, 3, H, W).

        Raises:
            ValueError, TypeError: without any input, for an image that cannot be read, or when images and
                placeholders are not equally many.
        """
        if images is None and text is None:
            raise ValueError("Give `text`, `images` or both.")
        loaded_images = [image if is_token_grid(image) else load_image(image) for image in flatten_images(images)]
        data = {}
        if pixels := [pil_image for pil_image in loaded_images if not is_token_grid(pil_image)]:
            data.update((self.vision_processor or self.image_processor)(pixels, return_tensors="pt"))
        if text is None:
            return BatchFeature(data)
        encoded = self.tokenizer(
            check_texts("text", text),
            add_special_tokens=False,
            sanitize_control_tokens=sanitize_control_tokens,
            return_offsets_mapping=return_offsets_mapping,
        )
        found = sum(row.count(self.image_token_id) for row in encoded["input_ids"])
        if found != len(loaded_images):
            raise ValueError(
                f"`text` has {found} placeholders {self.image_token!r}, and {len(loaded_images)} `images` were given."
            )
        blocks = iter([self.image_ids(p) if is_token_grid(p) else self.placeholder_ids() for p in loaded_images])
        parts = [
            [next(blocks) if token == self.image_token_id else [token] for token in row]
            for row in encoded["input_ids"]
        ]
        data.update(self.pad_rows([[token for part in row for token in part] for row in parts], side=padding_side))
        if return_offsets_mapping:
            # Every position of an image has its placeholder's place in the text; a pad has none.
            spans = [
                [span for span, part in zip(row_spans, row, strict=True) for _ in part]
                for row_spans, row in zip(encoded["offset_mapping"], parts, strict=True)
            ]
            data["offset_mapping"] = [
                self.padded(row, (0, 0), data["input_ids"].shape[1], padding_side) for row in spans
            ]
        return BatchFeature(data)

    def apply_chat_template(
        self, conversation, chat_template: str | None = None, sanitize_control_tokens: bool | None = None, **kwargs
    ):
        r"""
        A conversation, or a list of them, to a prompt; as in transformers.

        With image codes: `mmu (soi image eoi)* sot` and `"USER: \n{question} ASSISTANT:"`; the images of the first
        message come first. With CLIP features: `mmu`, the system prompt, `soi features eoi` and
        `"USER: {question} ASSISTANT:"`. An answer ends with `eot`, and a further turn follows it.

        Args:
            conversation: messages `{"role": "user" | "assistant" | "system", "content": ...}`, where the content is a
                text or a list of `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}` (or "path",
                "url", "base64"); an image is anything that [`~ShowoProcessor.__call__`] takes, a grid of codes too.
            sanitize_control_tokens (`bool`, *optional*): read names of special tokens in what users wrote as plain
                text; by default wherever ids are made, unless `return_assistant_tokens_mask` is asked for.
            tokenize, return_dict, add_generation_prompt, continue_final_message, return_assistant_tokens_mask, ...: see
                transformers. Tensors come with `return_dict=True`, padded on the left.

        Raises:
            ValueError, TypeError: for images that cannot be read, and for roles and parts that do not exist.
        """
        if sanitize_control_tokens is None:
            sanitize_control_tokens = kwargs.get("tokenize", False) and not kwargs.get("return_assistant_tokens_mask")
        return super().apply_chat_template(
            conversation, chat_template, sanitize_control_tokens=sanitize_control_tokens, **kwargs
        )

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]


def check_texts(name: str, texts) -> list[str]:
    """A text or several as a list; `TypeError` or `ValueError` for anything else."""
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"`{name}` must be a text or a list of texts, got {type(texts).__name__}: {texts!r:.80}.")
    if not texts:
        raise ValueError(f"`{name}` must hold at least one text, got an empty list.")
    return list(texts)


def check_equal_length(**named: Sequence):
    """Raise `ValueError` unless the two named sequences are equally long."""
    (first, one), (second, other) = named.items()
    if len(one) != len(other):
        raise ValueError(f"`{first}` and `{second}` must be equally many, got {len(one)} and {len(other)}.")
