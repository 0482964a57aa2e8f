"""The start of stage 1: a Show-o model from a text model of transformers (section 3.1 of arXiv:2408.12528).

The text model's vocabulary is widened in the published order: its text ids, `[PAD]`, soi, eoi, sov, eov, t2i, mmu, t2v,
v2v, lvg, the codebook, `[MASK]`. Stages 2 and 3 need nothing of this: they load the pipeline folder of the stage before.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..models.configuration_showo import ShowoConfig
from ..models.image_tokenizer import ShowoImageTokenizer
from ..models.modeling_showo import ShowoForCausalLM
from ..processing.processing_showo import ShowoProcessor, add_showo_tokens, showo_image_processor
from ..processing.text_tokenizers import load_text_tokenizer
from ..utils.validation import check_count


#: What is downloaded of a repository: no pickle and no code.
FILES = ("*.json", "*.safetensors", "*.model")
#: Published layout, for a start without an image tokenizer.
CODEBOOK_SIZE, NUM_IMAGE_TOKENS, PIXELS_OF_A_TOKEN = 8192, 256, 16
#: Weights that a text model may lack because Show-o adds them.
QK_NORM = re.compile(r"\.[qk](_layernorm|_proj\.norm)\.")


def start_from_text_model(
    name_or_folder: str | Path,
    *,
    image_tokenizer: ShowoImageTokenizer | None,
    codebook_size: int | None = None,
    num_image_tokens: int | None = None,
    max_text_length: int = 128,
    generator: torch.Generator,
    qk_layernorm: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[ShowoForCausalLM, ShowoProcessor]:
    """
    Make a Show-o model, and its processor, from a text model.

    **Rows of the embedding and the head.** The original calls `resize_token_embeddings` of transformers 4.41, and so
    does the same here: all rows of the text model are copied, and rows behind them are drawn from a normal distribution
    with mean 0 and standard deviation `initializer_range` of the text model (0.02 for Phi). The head's new rows are
    drawn in the same way, and its new biases are 0. If the text model ties its head to its embedding, they stay tied.

    **Padding rows.** Many text models have more rows than their tokenizer has ids. Phi-1.5 has 51,200 rows for 50,295
    ids. As in the original, these rows are copied as well, and the new ids begin right behind the tokenizer's. So
    `[PAD]`, the nine special tokens and the first 895 image tokens of a Show-o from phi-1.5 start from rows that were
    never an input or a label. Rows behind the last id, `[MASK]`, are dropped.

    **QK-Norm.** Where the backbone has none, it is added with weights 1 and biases 0, as in the original, whose Phi gets
    `qk_layernorm=True` and fresh norms. This changes what the text model computes; training repairs it. With
    `qk_layernorm=False` the logits of text are those of the text model.

    **sot and eot.** They are the tokenizer's `bos_token` and `eos_token`, or where it names none, the tokens of
    `bos_token_id` and `eos_token_id` in the text model's config. If only one of the two is known, it serves as both, as
    in Phi-1.5, where both are 50256.

    In layers with a sliding window, every position sees the whole sequence, as the omni-attention mask says.

    Args:
        name_or_folder: a text model that `AutoModelForCausalLM` loads, with its text tokenizer: a folder, or the name of
            a repository on the Hub. Weights must be safetensors. The text tokenizer is a `tokenizer.json` or a
            SentencePiece model, see [`load_text_tokenizer`]. No code of the folder runs.
        image_tokenizer: becomes the model's frozen image tokenizer. None for a model that is trained on stored tokens.
        codebook_size: number of image tokens, by default the image tokenizer's, or 8192 without one.
        num_image_tokens: tokens of an image, a square number, by default the image tokenizer's at its `sample_size`, or
            256 without one.
        max_text_length: ids of the text part of a text-to-image sequence, `sot` and `eot` included.
        generator: a generator on the CPU for the new rows: first the embedding's, then the head's.
        qk_layernorm: whether to add QK-Norm to a backbone that has none.
        dtype: dtype of the weights. The original trains float32 weights under bf16 autocast.

    Returns:
        The model, on the CPU and in evaluation mode, and the processor.

    Raises:
        ValueError: if the folder has no safetensors weights, no text tokenizer or not all weights; if the model is no
            text decoder, its head is not a linear layer alone or is tied to an embedding of an unknown name, it does
            not follow the omni-attention mask, has no `q_proj` and `k_proj` for QK-Norm, or has too few positions; if
            the tokenizer is not the model's or has neither `bos_token` nor `eos_token`; or if `num_image_tokens` or
            `codebook_size` is invalid.
    """
    if image_tokenizer is not None:
        codebook_size = codebook_size or image_tokenizer.config.codebook_size
        num_image_tokens = num_image_tokens or trained_tokens(image_tokenizer)
    codebook_size, num_image_tokens = codebook_size or CODEBOOK_SIZE, num_image_tokens or NUM_IMAGE_TOKENS
    check_sizes(codebook_size, num_image_tokens, max_text_length, image_tokenizer)
    folder = text_model_folder(name_or_folder)
    text_tokenizer = load_text_tokenizer(folder)
    text_config = read_text_config(folder, qk_layernorm, positions=max_text_length + num_image_tokens + 3)
    set_text_ends(text_tokenizer, text_config)
    check_ids(text_tokenizer, text_config.vocab_size)
    pixels = image_tokenizer.config.downsampling if image_tokenizer is not None else PIXELS_OF_A_TOKEN
    processor = ShowoProcessor(
        showo_image_processor(math.isqrt(num_image_tokens) * pixels),
        add_showo_tokens(text_tokenizer),
        codebook_size=codebook_size,
        num_image_tokens=num_image_tokens,
        max_text_length=max_text_length,
    )
    text_model = load_text_model(folder, text_config, dtype)
    config = showo_config(text_model, processor, image_tokenizer, qk_layernorm)
    weights = widened_weights(text_model, config.vocab_size, generator)
    if image_tokenizer is not None:
        weights |= {f"image_tokenizer.{name}": weight for name, weight in image_tokenizer.state_dict().items()}
    model = build(config, weights, dtype)
    check_follows_mask(model)
    return model, processor


# Sizes


def trained_tokens(image_tokenizer: ShowoImageTokenizer) -> int:
    """Number of tokens of an image at the size on which the image tokenizer was trained."""
    return (image_tokenizer.config.sample_size // image_tokenizer.config.downsampling) ** 2


def check_sizes(
    codebook_size: int, num_image_tokens: int, max_text_length: int, image_tokenizer: ShowoImageTokenizer | None
):
    """Raise `ValueError` for sizes of which no Show-o model can be made."""
    check_count("codebook_size", codebook_size)
    check_count("max_text_length", max_text_length, least=2)
    check_count("num_image_tokens", num_image_tokens)
    if math.isqrt(num_image_tokens) ** 2 != num_image_tokens:
        raise ValueError(f"`num_image_tokens` must be a square number, got {num_image_tokens}.")
    if image_tokenizer is not None and image_tokenizer.config.codebook_size != codebook_size:
        raise ValueError(
            f"`codebook_size` must equal the image tokenizer's ({image_tokenizer.config.codebook_size}), "
            f"got {codebook_size}."
        )


# The text model


def text_model_folder(name_or_folder: str | Path) -> Path:
    """
    The folder of a text model, after its download if it is on the Hub.

    Raises:
        ValueError: if the folder has no config or no safetensors weights.
    """
    folder = Path(name_or_folder).expanduser()
    if not folder.is_dir():
        folder = Path(snapshot_download(str(name_or_folder), allow_patterns=list(FILES)))
    if not (folder / "config.json").is_file():
        raise ValueError(f"'{name_or_folder}' is no text model of transformers: it has no `config.json`.")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"'{name_or_folder}' has no .safetensors weights; other formats are not loaded.")
    return folder


def read_text_config(folder: Path, qk_layernorm: bool, positions: int) -> PreTrainedConfig:
    """
    The config of a text model, with QK-Norm switched on if `qk_layernorm` is set and the model has the option.

    Args:
        positions: length of a text-to-image sequence, which the model must have positions for.
    """
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.get_text_config(decoder=True) is not config or config.is_encoder_decoder:
        raise ValueError(f"'{folder}' must be a text decoder, got a '{config.model_type}' model.")
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and longest < positions:
        raise ValueError(
            f"'{folder}' must have positions for a text-to-image sequence of {positions} ids, got "
            f"max_position_embeddings={longest}. Allowed are fewer `num_image_tokens` or a smaller `max_text_length`."
        )
    if hasattr(config, "qk_layernorm"):
        config.qk_layernorm = config.qk_layernorm or qk_layernorm
    # A padding id freezes its row. Many text models pad with `eos`, and Show-o has a pad token of its own.
    config.pad_token_id = None
    return config


def load_text_model(folder: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """
    The text model with its head, in evaluation mode.

    Raises:
        ValueError: if weights are missing, or if the head is more than a linear layer on the last hidden states.
    """
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    check_complete(folder, report["missing_keys"])
    head = model.get_output_embeddings()
    ids = torch.arange(min(8, config.vocab_size)).unsqueeze(0)
    with torch.no_grad():
        logits, hidden_states = model(ids).logits, model.base_model(ids).last_hidden_state
        if type(head) is not nn.Linear or not torch.allclose(logits, head(hidden_states), rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"The logits of '{folder}' ({type(model).__name__}) must be a linear layer of the last hidden states. "
                "Models that scale or cap their logits are not supported."
            )
    return model


def check_complete(source: object, missing: set[str]):
    """Raise `ValueError` if weights are missing that Show-o does not add itself."""
    missing = {name for name in missing if not QK_NORM.search(name)}
    if missing:
        raise ValueError(f"'{source}' lacks {len(missing)} weights: {', '.join(sorted(missing)[:5])}")


# The text tokenizer


def set_text_ends(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig):
    """
    Give a text tokenizer the `bos_token` and `eos_token` that serve as `sot` and `eot`; see [`start_from_text_model`].

    Raises:
        ValueError: if neither is known.
    """
    bos = tokenizer.bos_token or token_of(tokenizer, getattr(config, "bos_token_id", None))
    eos = tokenizer.eos_token or token_of(tokenizer, getattr(config, "eos_token_id", None))
    if bos is None and eos is None:
        raise ValueError(
            "The text tokenizer must have a `bos_token` or an `eos_token`, which start and end a text, got neither, and "
            "the model's config names none. Set one in `tokenizer_config.json`."
        )
    tokenizer.bos_token, tokenizer.eos_token = bos or eos, eos or bos


def token_of(tokenizer: PreTrainedTokenizerBase, index: int | list[int] | None) -> str | None:
    """The token with an id, or with the first of several ids; None if the tokenizer has no such id."""
    index = index[0] if isinstance(index, list) else index
    return {value: token for token, value in tokenizer.get_vocab().items()}.get(index)


def check_ids(tokenizer: PreTrainedTokenizerBase, rows: int):
    """Raise `ValueError` if the tokenizer's ids have gaps, or if the text model has fewer rows than its base vocabulary."""
    ids = set(tokenizer.get_vocab().values())
    if ids != set(range(len(tokenizer))):
        raise ValueError(
            f"The ids of the text tokenizer must be 0 to {len(tokenizer) - 1} without gaps, because the image tokens "
            f"follow them, got ids up to {max(ids)}."
        )
    if tokenizer.vocab_size > rows:
        raise ValueError(
            f"The text model has {rows} rows for the {tokenizer.vocab_size} ids of the text tokenizer. Is it the "
            "tokenizer of another model?"
        )


# The Show-o model


def vocabulary_options(processor: ShowoProcessor) -> dict[str, int]:
    """The arguments of [`ShowoConfig`] that a processor decides: sizes and ids of the vocabulary."""
    return {
        "codebook_size": processor.codebook_size,
        "num_image_tokens": processor.num_image_tokens,
        "max_text_length": processor.max_text_length,
        "image_token_offset": processor.image_token_offset,
        "bos_token_id": processor.sot_token_id,
        "eos_token_id": processor.eot_token_id,
        **processor.special_token_ids(),
    }


def showo_config(
    text_model: PreTrainedModel,
    processor: ShowoProcessor,
    image_tokenizer: ShowoImageTokenizer | None,
    qk_layernorm: bool,
) -> ShowoConfig:
    """The config of a Show-o model with this backbone and the vocabulary of the processor."""
    text: Any = type(text_model.config).from_dict(text_model.config.to_dict() | {"architectures": None})
    text.vocab_size = processor.mask_token_id + 1
    return ShowoConfig(
        text_config=text,
        image_tokenizer_config=image_tokenizer.config if image_tokenizer is not None else None,
        qk_layernorm=qk_layernorm,
        lm_head_bias=text_model.get_output_embeddings().bias is not None,
        tie_word_embeddings=bool(text.tie_word_embeddings),
        initializer_range=initializer_range(text),
        **vocabulary_options(processor),
    )


def initializer_range(text_config: PreTrainedConfig) -> float:
    """The standard deviation with which a text model's embedding is initialized, transformers' 0.02 if it names none."""
    return getattr(text_config, "initializer_range", None) or 0.02


def widened_weights(text_model: PreTrainedModel, rows: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The weights of a text model by their names in [`ShowoForCausalLM`], with `rows` rows of embedding and head."""
    std = initializer_range(text_model.config)
    backbone, head = text_model.base_model, text_model.get_output_embeddings()
    embedding = backbone.get_input_embeddings().weight
    weights = {f"model.{name}": weight for name, weight in backbone.state_dict().items()}
    [name] = [name for name, weight in backbone.named_parameters() if weight is embedding]
    if head.weight is embedding and name != "embed_tokens.weight":
        raise ValueError(
            f"The embedding of a text model with a tied head must be named 'embed_tokens.weight', got '{name}' in a "
            f"'{text_model.config.model_type}' model."
        )
    weights[f"model.{name}"] = widened_rows(embedding, rows, std, generator)
    if head.weight is not embedding:  # a tied head is not stored
        weights["lm_head.weight"] = widened_rows(head.weight, rows, std, generator)
    if head.bias is not None:
        weights["lm_head.bias"] = widened_rows(head.bias, rows, 0.0, generator)
    return weights


def widened_rows(old: torch.Tensor, rows: int, std: float, generator: torch.Generator) -> torch.Tensor:
    """
    The first `rows` rows of a weight or bias, continued by normal draws with standard deviation `std` if it has fewer.

    Args:
        old (`torch.Tensor` of shape `(old rows, ...)`).
    """
    count = min(rows, old.shape[0])
    drawn = torch.zeros(rows - count, *old.shape[1:])
    if std:
        drawn.normal_(std=std, generator=generator)
    return torch.cat([old.detach()[:count], drawn.to(old.dtype)])


def build(config: ShowoConfig, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> ShowoForCausalLM:
    """A model with these weights. The names follow where QK-Norm wraps a projection; the norms start at 1 and 0."""
    with torch.device("meta"):
        names = ShowoForCausalLM(config).state_dict().keys()
    renamed = {}
    for name, weight in weights.items():
        wrapped = re.sub(r"\.([qk]_proj)\.", r".\1.proj.", name)
        renamed[wrapped if wrapped in names else name] = weight
    if unknown := sorted(renamed.keys() - names):
        raise ValueError(f"This text model is not supported: {config.text_config.model_type} has {unknown[:5]}.")
    model, report = ShowoForCausalLM.from_pretrained(
        None, config=config, state_dict=renamed, dtype=dtype, output_loading_info=True
    )
    check_complete(config.text_config.model_type, report["missing_keys"])
    return model.eval()


@torch.no_grad()
def check_follows_mask(model: ShowoForCausalLM):
    """
    Raise `ValueError` unless an image's tokens see each other and text sees only what is before it.

    A backbone that mixes positions without attention, or makes its mask itself, cannot learn Show-o's tasks.
    """
    config = model.config
    first = config.image_token_offset
    row = [config.bos_token_id, config.soi_token_id, first, first, config.eoi_token_id, config.bos_token_id]
    other_image, other_text = list(row), list(row)
    other_image[3], other_text[5] = first + config.codebook_size - 1, config.t2i_token_id
    rows = (row, other_image, other_text)
    try:
        plain, image, text = (model(torch.tensor([ids]), codebook_only=True).logits[0].float() for ids in rows)
    except Exception as error:  # each kind of backbone fails differently at inputs that it does not know
        raise ValueError(f"A '{config.text_config.model_type}' backbone is not supported: {error}") from error
    sees_image = not torch.allclose(plain[2], image[2], atol=1e-6)
    is_causal = torch.allclose(plain[0], image[0], atol=1e-4) and torch.allclose(plain[:5], text[:5], atol=1e-4)
    if not sees_image or not is_causal:
        raise ValueError(
            f"A '{config.text_config.model_type}' backbone is not supported: it does not follow the omni-attention mask."
        )
