"""The keyword arguments of `ShowoProcessor.__call__`: which exist, their defaults, and their checks."""

import functools
import inspect
import math
import re
import threading
from collections.abc import Iterable
from enum import Enum
from typing import Any, Literal, TypedDict

import torch
from jinja2 import Environment, meta
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, ProcessorMixin, TextKwargs
from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy
from transformers.utils import TensorType

from ..utils.validation import check_choice, check_flag, shown


class ShowoTextKwargs(TypedDict, total=False):
    """
    Keyword arguments for texts, with the names and meanings of transformers' `TextKwargs`.

    `max_length`, `padding` and `truncation` count the ids of a row after each placeholder has become an image block.
    """

    add_special_tokens: bool | None
    padding: bool | str | PaddingStrategy | None
    truncation: bool | str | TruncationStrategy | None
    max_length: int | None
    pad_to_multiple_of: int | None
    padding_side: Literal["left", "right"] | None
    return_attention_mask: bool | None
    return_offsets_mapping: bool | None
    return_text_replacement_offsets: bool | None
    sanitize_control_tokens: bool | None
    return_tensors: str | TensorType | None


class ShowoProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """Keyword arguments of [`ShowoProcessor`], either flat or grouped in `text_kwargs` and `images_kwargs`."""

    text_kwargs: ShowoTextKwargs
    images_kwargs: ImagesKwargs


#: Applied where an argument is missing or, except for `return_tensors`, None.
TEXT_DEFAULTS: dict[str, Any] = {
    "add_special_tokens": False,
    "padding": True,
    "truncation": False,
    "max_length": None,
    "pad_to_multiple_of": None,
    "padding_side": "left",  # the side for generation
    "return_attention_mask": True,
    "return_offsets_mapping": False,
    "return_text_replacement_offsets": False,
    "sanitize_control_tokens": False,
    "return_tensors": "pt",
}
NAMED = ("padding", "truncation")  # a bool or the name of a strategy
FLAGS = [name for name, default in TEXT_DEFAULTS.items() if isinstance(default, bool) and name not in NAMED]
#: Arguments of `apply_chat_template`.
TEMPLATE_FLAGS = {
    "add_generation_prompt",
    "load_audio_from_video",
    "return_assistant_tokens_mask",
    "return_dict",
    "tokenize",
}
MAX_LENGTH = 2**24  # ids of a row
GROUPS = ("text_kwargs", "images_kwargs")
#: Arguments of other processors. They are accepted with an empty value.
UNSUPPORTED = {*TextKwargs.__annotations__, *ProcessingKwargs.__annotations__, "videos", "audio"} - {
    *TEXT_DEFAULTS,
    *GROUPS,
}


def image_kwarg_names(image_processor) -> set[str]:
    """The keyword arguments that an image processor accepts."""
    return {*getattr(image_processor, "valid_kwargs", ImagesKwargs).__annotations__}


def split_kwargs(kwargs: dict[str, Any], image_names: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Sort keyword arguments into those for texts, with defaults, and those for the image processor.

    A flat argument goes to every group that has it. `common_kwargs` apply to both groups, with lower priority.

    Args:
        kwargs: flat arguments, `text_kwargs`, `images_kwargs` and `common_kwargs`.
        image_names: the names that the image processor accepts.

    Raises:
        TypeError: for a name that does not exist, or that a Show-o processor does not support.
        ValueError: for an argument that is given both flat and in a group, or a wrong value.
    """
    names = {"text_kwargs": set(TEXT_DEFAULTS), "images_kwargs": set(image_names)}
    given: dict[str, dict[str, Any]] = {"text_kwargs": {}, "images_kwargs": {}}
    flat = {name: value for name, value in kwargs.items() if name not in (*GROUPS, "common_kwargs")}
    check_known(flat, set().union(*names.values()) | {*GROUPS, "common_kwargs", "images", "text"})
    common = group_of(kwargs, "common_kwargs")
    check_known(common, set().union(*names.values()), "common_kwargs")
    for group, known in names.items():
        own = group_of(kwargs, group)
        check_known(own, known, group)
        if twice := sorted(own.keys() & flat.keys()):
            raise ValueError(f"`{twice[0]}` was given twice: in `{group}` and as a keyword argument.")
        for options in (common, own, flat):
            given[group].update({name: value for name, value in options.items() if name in known})
    return text_options(given["text_kwargs"]), given["images_kwargs"]


def group_of(kwargs: dict[str, Any], group: str) -> dict[str, Any]:
    """The nested arguments `kwargs[group]`, empty where they are missing or None."""
    options = {} if kwargs.get(group) is None else kwargs[group]
    if not isinstance(options, dict):
        raise TypeError(f"`{group}` must be a dictionary, got {type(options).__name__}: {shown(options)}.")
    return options


def check_known(options: dict[str, Any], known: set[str], group: str | None = None):
    """Raise `TypeError` for a name that is neither in `known` nor an unsupported argument with an empty value."""
    for name, value in options.items():
        is_empty = value is None or (isinstance(value, (bool, int, dict)) and not value)
        if name in known or (name in UNSUPPORTED and is_empty):
            continue
        place = f" in `{group}`" if group else ""
        raise TypeError(
            f"ShowoProcessor got an unexpected keyword argument {name!r}{place}. Allowed are {', '.join(sorted(known))}."
        )


def text_options(given: dict[str, Any]) -> dict[str, Any]:
    """`given` with defaults, `padding` and `truncation` as transformers' enums; `ValueError` for a wrong value."""
    set_options = {name: value for name, value in given.items() if value is not None or name == "return_tensors"}
    options = TEXT_DEFAULTS | set_options
    options["padding"] = padding_strategy(options["padding"])
    options["truncation"] = truncation_strategy(options["truncation"])
    for name in ("max_length", "pad_to_multiple_of"):
        value = options[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"`{name}` must be a whole number of at least 1, got {shown(value)}.")
        if value is not None and value > MAX_LENGTH:
            raise ValueError(f"`{name}` must be at most {MAX_LENGTH:,}, got {shown(value)}.")
    for name in FLAGS:
        check_flag(name, options[name])
    check_choice("padding_side", options["padding_side"], ("left", "right"))
    if options["return_tensors"] is not None:
        options["return_tensors"] = enum_member("return_tensors", TensorType, options["return_tensors"])
    if options["return_offsets_mapping"] and options["sanitize_control_tokens"]:
        raise ValueError("`return_offsets_mapping` and `sanitize_control_tokens` cannot be combined.")
    return options


def padding_strategy(padding: bool | str | PaddingStrategy) -> PaddingStrategy:
    """The strategy that `padding` names; True is "longest", False is "do_not_pad"."""
    if isinstance(padding, bool):
        return PaddingStrategy.LONGEST if padding else PaddingStrategy.DO_NOT_PAD
    return enum_member("padding", PaddingStrategy, padding)


def truncation_strategy(truncation: bool | str | TruncationStrategy) -> TruncationStrategy:
    """The strategy that `truncation` names; True is "longest_first", False is "do_not_truncate"."""
    if isinstance(truncation, bool):
        return TruncationStrategy.LONGEST_FIRST if truncation else TruncationStrategy.DO_NOT_TRUNCATE
    strategy = enum_member("truncation", TruncationStrategy, truncation)
    if strategy is TruncationStrategy.ONLY_SECOND:
        raise ValueError("`truncation` must be a bool, 'longest_first' or 'only_first': there is no second text.")
    return strategy


def enum_member(name: str, kind: type[Enum], value: Any) -> Any:
    """The member of `kind` with that value; `ValueError` that names the argument if there is none."""
    allowed = [member.value for member in kind]
    if not isinstance(value, (str, kind)) or value not in (*allowed, *kind):
        raise ValueError(f"`{name}` must be one of {allowed}, got {shown(value)}.")
    return kind(value)


def row_limits(options: dict[str, Any], model_max_length: int) -> tuple[int | None, int | None]:
    """
    How many ids a row keeps, and to how many it is padded.

    Args:
        options: as [`split_kwargs`] returns them.
        model_max_length: the tokenizer's, which applies where `max_length` is None; above 1e20 it has none.

    Returns:
        The length to truncate to, None without truncation; and the length to pad to, None for the longest row and 0
        without padding.

    Raises:
        ValueError: if a limit is needed and missing, given and unused, or in conflict with `pad_to_multiple_of`.
    """
    truncates = options["truncation"] is not TruncationStrategy.DO_NOT_TRUNCATE
    pads_to_limit = options["padding"] is PaddingStrategy.MAX_LENGTH
    multiple, limit = options["pad_to_multiple_of"], options["max_length"]
    if not truncates and not pads_to_limit and limit is not None:
        raise ValueError(f"`max_length={limit}` has no effect without `truncation=True` or `padding='max_length'`.")
    if limit is None and model_max_length <= 1e20:
        limit = model_max_length
    if limit is None and (truncates or pads_to_limit):
        argument = "truncation" if truncates else "padding='max_length'"
        raise ValueError(f"`{argument}` needs `max_length`, because the tokenizer has no `model_max_length`.")
    pads = options["padding"] is not PaddingStrategy.DO_NOT_PAD
    if truncates and pads and multiple is not None and limit % multiple:
        raise ValueError(f"`max_length` must be a multiple of `pad_to_multiple_of`, got {limit} and {multiple}.")
    return limit if truncates else None, (limit if pads_to_limit else None) if pads else 0


def padded_length(rows: list[list], length: int | None, multiple: int | None) -> int:
    """The length to pad `rows` to: `length`, or the longest row's for None, rounded up to a multiple; 0 stays 0."""
    length = max(len(row) for row in rows) if length is None else length
    return math.ceil(length / multiple) * multiple if multiple else length


def truncated_range(parts: list[list[int]], max_length: int | None, truncation_side: str) -> slice:
    """
    Which parts of a row truncation keeps.

    Args:
        parts: single ids, each as a list, and image blocks.
        max_length: ids to keep; None keeps all.
        truncation_side: the side that is cut, "left" or "right".

    Raises:
        ValueError: if truncation would cut an image block.
    """
    surplus = 0 if max_length is None else sum(len(part) for part in parts) - max_length
    if surplus <= 0:
        return slice(None)
    cut = parts[-surplus:] if truncation_side == "right" else parts[:surplus]
    if any(len(part) > 1 for part in cut):
        raise ValueError(
            f"Truncation of {surplus + max_length} ids to `max_length={max_length}` would cut an image. "
            "Increase `max_length` or disable `truncation`."
        )
    return slice(None, -surplus) if truncation_side == "right" else slice(surplus, None)


def check_image_sizes(pixel_values, image_processor):
    """Raise `ValueError` if images have another number of pixels than the image processor makes by default."""
    blank = torch.zeros(3, 8, 8, dtype=torch.uint8)
    expected = tuple(image_processor(blank, return_tensors="pt")["pixel_values"][0].shape)
    for image in pixel_values:
        if math.prod(image.shape) != math.prod(expected):
            raise ValueError(
                f"`images` that go with `text` must have the shape {expected}, got {tuple(image.shape)}: the number of "
                "positions of an image is fixed. Leave out arguments such as `size`, `crop_size` and `do_resize`."
            )


def check_template_kwargs(chat_template: str | None, kwargs: dict[str, Any], image_names: Iterable[str]):
    """
    Check the names of `apply_chat_template`'s keyword arguments.

    Raises:
        TypeError: for a name that neither `apply_chat_template`, the template nor the processor's `__call__` has.
    """
    own = {*TEXT_DEFAULTS, *GROUPS, "common_kwargs", "images", *image_names}
    parameters = {*inspect.signature(ProcessorMixin.apply_chat_template).parameters} - {"self", "kwargs"}
    variables = template_variables(chat_template or "")
    check_known({name: value for name, value in kwargs.items() if name not in variables}, own | parameters)
    check_known(group_of(kwargs, "processor_kwargs"), own, "processor_kwargs")


def check_template_options(conversation: Any, options: dict[str, Any]):
    """
    Check the arguments of `apply_chat_template` that transformers would use unchecked.

    Raises:
        TypeError, ValueError: for a value that they do not take.
    """
    for name in TEMPLATE_FLAGS & options.keys():
        check_flag(name, options[name])
    for name, kinds, is_one in (("tools", "dicts or functions", is_tool), ("documents", "dicts", is_document)):
        values = options.get(name)
        if values is not None and not (isinstance(values, (list, tuple)) and all(map(is_one, values))):
            raise TypeError(f"`{name}` must be a list of {kinds}, or None, got {shown(values)}.")
    tensors = options.get("return_tensors")
    if tensors is not None and not (isinstance(tensors, str) and tensors == "auto"):
        enum_member("return_tensors", TensorType, tensors)
    continued = options.get("continue_final_message", False)
    if not isinstance(continued, str):
        check_flag("continue_final_message", continued)
        return
    conversations = [conversation] if isinstance(conversation[0], dict) else conversation
    if not all(messages and continued in messages[-1] for messages in conversations):
        raise ValueError(f"`continue_final_message` must be a field of the last message, got {shown(continued)}.")


def is_document(value: Any) -> bool:
    """Whether a value is a document for a template: a dict."""
    return isinstance(value, dict)


def is_tool(value: Any) -> bool:
    """Whether a value is a tool for a template: a function, or the dict that describes one."""
    return is_document(value) or (callable(value) and not isinstance(value, type))


@functools.lru_cache(maxsize=8)
def template_variables(chat_template: str) -> frozenset[str]:
    """The variables that a Jinja template expects from its caller."""
    # transformers adds the tag `generation` to Jinja.
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", chat_template)
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    return frozenset(meta.find_undeclared_variables(environment.parse(plain)))


def template_of_this_thread(chat_template: str) -> str:
    """
    A template with the same output, and a text that no other thread uses.

    transformers caches each compiled template by its text, together with the record of where answers stand. Only one
    thread at a time can use that record.
    """
    return chat_template.removesuffix("\n") + f'{{{{ "" if {threading.get_ident()} else "" }}}}'
