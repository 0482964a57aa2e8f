"""Training of low-rank adapters: LoRA (arXiv:2106.09685), DoRA (arXiv:2402.09353), and rows of the embedding in full.

The base model may be quantized (QLoRA, arXiv:2305.14314). Weights in 8 bits of torchao train on any device, also on a
CPU: `ShowoForCausalLM.from_pretrained(..., quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))`. Weights in 4 bits
need bitsandbytes, which needs a GPU; torchao's cannot be trained through.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase, TorchAoConfig

from showo_hf.models.modeling_showo import ShowoForCausalLM
from showo_hf.utils.adapter_files import check_heads, write_adapter
from showo_hf.utils.adapters import adapter_names, adapter_tensors, fuse, remove_adapters, require_peft
from showo_hf.utils.atomic_folder import atomic_folder
from showo_hf.utils.module_copies import copy_on_cpu
from showo_hf.utils.validation import check_count, is_integer, is_number


EMBEDDING = "model.embed_tokens"
#: Modules that are never adapted: they are frozen in every stage of training.
FROZEN = ("image_tokenizer.", "vision_tower.")


def linear_layers(model: ShowoForCausalLM) -> dict[str, str]:
    """
    Names of the linear layers that an adapter may adapt, each with its short name, such as `q_proj`.

    These are the layers of the decoder and of the projector, and the head unless the embedding shares its weight. The
    vision tower and the image tokenizer are left out. Behind QK-Norm, the short name of `q_proj.proj` is `q_proj`.
    """
    names = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(FROZEN):
            if name != "lm_head" or not model.config.tie_word_embeddings:
                names[name] = name.removesuffix(".proj").rpartition(".")[2]
    return names


def target_modules(model: ShowoForCausalLM, targets: str | Sequence[str]) -> str:
    """
    The layers to adapt, as a regular expression of full names: a short name alone could match the vision tower too.

    Args:
        model ([`ShowoForCausalLM`]): the base model.
        targets: see [`adapter_config`].

    Raises:
        ValueError: for unknown `targets`.
    """
    layers = linear_layers(model)
    decoder = [name for name in layers if name.startswith("model.")]
    if targets == "default":
        chosen = decoder
    elif targets == "attention":
        chosen = [name for name in decoder if ".self_attn." in name]
    elif targets == "all-linear":
        chosen = [name for name in layers if name != "lm_head"]
    else:
        known = sorted(set(layers.values()))
        wanted = [] if isinstance(targets, str) else list(targets)
        unknown = [name for name in wanted if name not in known and name not in layers]
        if unknown or not wanted:
            raise ValueError(
                f"`targets` must be 'default', 'attention', 'all-linear', or a list of names among {known}; got {targets!r}."
            )
        chosen = [name for name, short in layers.items() if name in wanted or short in wanted]
    patterns = {re.sub(r"\\\.\d+\\\.", lambda _: r"\.\d+\.", re.escape(name)) for name in chosen}
    return "|".join(sorted(patterns))


def adapter_config(
    model: ShowoForCausalLM,
    *,
    rank: int = 16,
    alpha: float | None = None,
    dora: bool = False,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "default",
    trained_tokens: Sequence[int] = (),
) -> Any:
    """
    The config of a new adapter.

    Args:
        model ([`ShowoForCausalLM`]): the base model.
        rank (`int`, defaults to 16): rank of each update, at least 1.
        alpha (`float`, *optional*): scales each update by `alpha / rank`; `rank` by default.
        dora (`bool`): train the length of each weight row apart from its direction (DoRA).
        dropout (`float`): share of the inputs of an update that are dropped in training, from 0 up to below 1.
        targets (`str` or `list[str]`): the layers to adapt. "default": all linear layers of the decoder (Phi: `q_proj`,
            `k_proj`, `v_proj`, `dense`, `fc1`, `fc2`; Llama: `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`,
            `up_proj`, `down_proj`). "attention": those of the attention. "all-linear": the projector of image features
            too. Or a list of such names. The image tokenizer and the vision tower are never adapted.
        trained_tokens (`list[int]`): ids whose rows of the embedding are trained in full; see [`word_token_ids`]. A head
            that shares the embedding's weight has the same rows.

    Returns:
        `peft.LoraConfig`

    Raises:
        ImportError: if peft is not installed.
        ValueError: for values that are not allowed.
    """
    peft = require_peft()
    check_count("rank", rank)
    alpha = rank if alpha is None else alpha
    if not is_number(alpha) or not 0 < alpha < float("inf"):
        raise ValueError(f"`alpha` must be a finite number above 0, got {alpha!r}.")
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be a number from 0 up to below 1, got {dropout!r}.")
    return peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_dora=bool(dora),
        lora_dropout=dropout,
        target_modules=target_modules(model, targets),
        trainable_token_indices=trained_rows_option(model, trained_tokens),
    )


def trained_rows_option(model: ShowoForCausalLM, ids: Sequence[int]) -> dict[str, list[int]] | None:
    """The ids as peft's `trainable_token_indices`. `ValueError` for ids that are not in the vocabulary."""
    if not len(ids):
        return None
    vocabulary = model.config.vocab_size
    if not all(is_integer(one) and 0 <= one < vocabulary for one in ids) or len(set(ids)) != len(ids):
        raise ValueError(f"`trained_tokens` must be different ids from 0 to {vocabulary - 1}, got {list(ids)}.")
    if model.config.tie_word_embeddings and model.lm_head.bias is not None:
        raise ValueError(
            "`trained_tokens` must be empty for a model whose head has a bias and shares the embedding's weight: peft would "
            f"leave out the bias; got {list(ids)}."
        )
    return {EMBEDDING: [int(one) for one in ids]}


def word_token_ids(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
    """
    The text ids of a word, at the start of a text and inside of it, for `trained_tokens`.

    A concept's word is made of ids that the vocabulary has. A new id would shift the ids of the image tokens, which follow
    the text ids directly. So take a rare word, such as "sks", as DreamBooth does (arXiv:2208.12242): LoRA alone learns what
    it stands for. Training the rows in full as well learns faster, and changes other words that share these ids.

    Raises:
        ValueError: if `word` is empty, or has special tokens.
    """
    if not isinstance(word, str) or not word.strip():
        raise ValueError(f"`word` must be a word, got {word!r}.")
    ids = {
        one for text in (word.strip(), f" {word.strip()}") for one in tokenizer.encode(text, add_special_tokens=False)
    }
    special = sorted(ids.intersection([*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder]))
    if special:
        raise ValueError(f"`word` must not contain special tokens, got {word!r} with the ids {special}.")
    return sorted(ids)


def quantization_config(name: str) -> Any:
    """
    The config to load a base model with for QLoRA: "int8" or "nf4".

    Raises:
        ImportError: if the package that quantizes is not installed.
    """
    if name == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def check_quantized_training(model: ShowoForCausalLM):
    """Raise `ValueError` if the model is quantized in a form that no gradient passes through."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or quantizer.is_trainable:
        return
    config = quantizer.quantization_config
    kind = type(getattr(config, "quant_type", config)).__name__
    raise ValueError(
        f"`model` is quantized by '{kind}', which cannot be trained through. Load it with torchao's "
        "`Int8WeightOnlyConfig` (any device), with bitsandbytes in 4 or 8 bits (GPU), or without quantization."
    )


def add_adapter(model: ShowoForCausalLM, config: Any, *, adapter_name: str = "default", seed: int = 0):
    """
    Add a new adapter to train, and freeze the rest of the model. The model's results are unchanged at first.

    The adapter's tensors are float32, also in a model of lower precision.

    Args:
        model ([`ShowoForCausalLM`]): the base model; changed in place.
        config (`peft.LoraConfig`): see [`adapter_config`].
        adapter_name (`str`): its name in the model.
        seed (`int`): seed of the initial weights. torch's own random state is unchanged.

    Raises:
        ValueError: if the model has adapters already, is quantized in a form that cannot be trained through, or if peft
            would compute another head than the saved one. The model then has its own layers.
    """
    require_peft()
    from peft.functional import cast_adapter_dtype

    check_quantized_training(model)
    if adapter_names(model):
        raise ValueError(f"`model` must have no adapters, got {adapter_names(model)}.")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.add_adapter(config, adapter_name)
        check_heads(model, "config")
    except BaseException:
        remove_adapters(model, [adapter_name])
        raise
    cast_adapter_dtype(model, adapter_name)
    model.train(model.training)  # the new layers take the model's mode


def save_adapter(
    model: ShowoForCausalLM,
    folder: str | os.PathLike,
    base_model: str,
    *,
    adapter_name: str = "default",
    overwrite: bool = False,
    is_main_process: bool = True,
):
    """
    Save an adapter for `load_lora_weights`, in peft's format. The folder appears complete or not at all.

    With sharded weights every process calls this, and the main process writes.

    Args:
        model ([`ShowoForCausalLM`]): the model with the adapter.
        folder (`str`): the new folder.
        base_model (`str`): name of the base model on the Hub, or its folder, of which the last part is written.
        adapter_name (`str`): which adapter.
        overwrite (`bool`): replace an existing folder and all of its contents.
        is_main_process (`bool`): whether to write.

    Raises:
        ValueError: if there is no such adapter.
        FileExistsError: if the folder exists and `overwrite` is False.
    """
    if adapter_name not in adapter_names(model):
        raise ValueError(f"`adapter_name` must be one of {adapter_names(model)}, got {adapter_name!r}.")
    tensors = {
        name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        for name, tensor in adapter_tensors(model, adapter_name).items()
    }
    if is_main_process:
        with atomic_folder(folder, overwrite) as fresh:
            write_adapter(model.peft_config[adapter_name], tensors, fresh, base_model)


def merge_adapter(model: ShowoForCausalLM, adapter_name: str = "default"):
    """
    Add an adapter to the model's own weights, and remove all adapters: a plain model, changed in place.

    Raises:
        ValueError: if there is no such adapter, if the model is quantized, or if the sum has NaN.
    """
    if adapter_name not in adapter_names(model):
        raise ValueError(f"`adapter_name` must be one of {adapter_names(model)}, got {adapter_name!r}.")
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(
            "`model` is quantized, so an adapter cannot be added to its weights: save the adapter, and load it in a model "
            "without quantization."
        )
    fuse(model, [adapter_name], safe=True)
    remove_adapters(model, adapter_names(model))


def merged_copy(model: ShowoForCausalLM, adapter_name: str = "default") -> ShowoForCausalLM:
    """
    A plain model on the CPU with the sum that [`merge_adapter`] makes. The model itself is unchanged.

    Raises:
        ValueError: as [`merge_adapter`].
    """
    twin = copy_on_cpu(model)
    merge_adapter(twin, adapter_name)
    return twin
