"""Configuration of the Show-o models."""

from typing import Any, ClassVar

from transformers import AutoConfig, CLIPVisionConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import SubConfigSpec

from ..utils.saved_folders import CheckedConfig
from ..utils.validation import (
    MAX_COUNT,
    MAX_SCALE,
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_parameters,
    check_sizes,
    is_number,
    shown,
)
from .configuration_showo_lfq import ShowoLFQTokenizerConfig
from .configuration_showo_vq import ShowoVQTokenizerConfig


#: Show-o's special tokens in the published order. They follow the pad token in the vocabulary.
SPECIAL_TOKEN_NAMES = ("soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg")
#: The arguments of [`ShowoConfig`] that hold the ids of the pad token, the special tokens and the mask token.
SPECIAL_TOKEN_ARGUMENTS = tuple(f"{name}_token_id" for name in ("pad", *SPECIAL_TOKEN_NAMES, "mask"))
#: The ids that a config may lack.
OPTIONAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "image_token_id")
LOSS_WEIGHTS = ("loss_weight_t2i", "loss_weight_lm", "loss_weight_mmu")

#: No model of this family comes near these sizes.
LARGEST_MODEL = {
    "num_image_tokens": 2**20,
    "max_text_length": 2**20,
    "codebook_size": 2**24,
    "image_feature_size": 2**17,
    "num_hidden_layers": 1000,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**13,
    "moe_intermediate_size": 2**20,
    "num_experts": 2**12,
    "num_local_experts": 2**12,
    "n_routed_experts": 2**12,
    "vocab_size": 2**25,
    "max_position_embeddings": 2**24,
    "image_size": 2**12,
    "partial_rotary_factor": 1,
}
MAX_PARAMETERS = 2**37

#: The configs of image tokenizers, by `model_type`.
IMAGE_TOKENIZER_CONFIGS = {config.model_type: config for config in (ShowoLFQTokenizerConfig, ShowoVQTokenizerConfig)}


class CheckedSpec(SubConfigSpec):
    """A part whose sizes are checked before its config is built: some configs make a list with an entry per layer."""

    def create_subconfig(self, key: str, subconfig: Any = None, **kwargs) -> tuple[Any, dict[str, Any]]:
        """
        Same as in transformers.

        Raises:
            TypeError: for what is neither a config nor a `dict`.
            ValueError: for sizes far beyond those of a model.
        """
        check_part_type(key, subconfig)
        if isinstance(subconfig, dict):
            kind = self.config_class
            if kind is AutoConfig:
                kind = self.get_config_class(subconfig.get("model_type", self.model_type))
            check_sizes(subconfig, LARGEST_MODEL, key)
            check_sizes(
                subconfig, {kind.attribute_map.get(name, name): most for name, most in LARGEST_MODEL.items()}, key
            )
        return super().create_subconfig(key, subconfig, **kwargs)


def check_part_type(key: str, config: Any):
    """Raise `TypeError` unless a part of the config is a config, a `dict` or None."""
    if config is not None and not isinstance(config, (dict, PreTrainedConfig)):
        raise TypeError(f"`{key}` must be a config, a dict or None, got {shown(config)}.")


def check_part(key: str, config: Any):
    """Raise `ValueError` if a backbone or a vision tower asks for sizes far beyond those of a model."""
    check_sizes(config, LARGEST_MODEL)
    rope = getattr(config, "rope_parameters", None) or {}
    for entries in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        check_sizes(entries, LARGEST_MODEL, f"{key}.rope_parameters")
    check_parameters(key, least_parameters(config), MAX_PARAMETERS)


def least_parameters(config: Any) -> int:
    """A number of parameters that a backbone or a vision tower with these sizes does not fall far below."""

    def size(*names: str, default: int = 0) -> int:
        """The largest of these sizes that the config names."""
        found = [getattr(config, name, None) for name in names]
        found = [one for value in found for one in (value if isinstance(value, (list, tuple)) else [value])]
        return max((one for one in found if is_number(one)), default=default)

    width, heads = size("hidden_size"), size("num_attention_heads", default=1)
    attention = heads * size("head_dim", default=width // max(1, heads))
    feed_forward = size("intermediate_size")
    if experts := size("num_experts", "num_local_experts", "n_routed_experts"):
        feed_forward = experts * size("moe_intermediate_size", default=feed_forward)
    patches = (size("image_size") // max(1, size("patch_size", default=1))) ** 2
    rows = size("num_hidden_layers") * (2 * attention + 2 * feed_forward) + size("vocab_size") + patches
    return width * rows


class ImageTokenizerSpec(SubConfigSpec):
    """
    The config of an image tokenizer, whose class depends on `model_type`.

    `SubConfigSpec(AutoConfig, ...)` would need the classes to be registered. They are not where the package's code is
    loaded with `trust_remote_code=True`.
    """

    def create_subconfig(self, key: str, subconfig: Any = None, **kwargs) -> tuple[Any, dict[str, Any]]:
        """
        Same as in transformers.

        Raises:
            TypeError: for what is neither a config nor a `dict`.
            ValueError: if a `dict` names another `model_type`.
        """
        check_part_type(key, subconfig)
        if isinstance(subconfig, dict):
            model_type = subconfig.get("model_type", self.model_type)
            if not isinstance(model_type, str) or model_type not in IMAGE_TOKENIZER_CONFIGS:
                allowed = ", ".join(IMAGE_TOKENIZER_CONFIGS)
                raise ValueError(f"`{key}` must have a `model_type` of {allowed}, got {shown(model_type)}.")
            subconfig = IMAGE_TOKENIZER_CONFIGS[model_type](**subconfig)
        return super().create_subconfig(key, subconfig, **kwargs)


class ShowoConfig(CheckedConfig):
    r"""
    Configuration of a [`ShowoForCausalLM`]. The defaults are the layout of the published Show-o models
    ("Show-o: One Single Transformer to Unify Multimodal Understanding and Generation", arXiv:2408.12528).

    The vocabulary holds the text ids, the special tokens, the image tokens from `image_token_offset` on, and the mask
    token, in this order.

    Args:
        text_config (`PreTrainedConfig` or `dict`, defaults to `PhiConfig(qk_layernorm=True)`):
            The decoder. Its `vocab_size` is the size of the whole vocabulary, image tokens included.
        vision_config (`CLIPVisionConfig` or `dict`, *optional*):
            A CLIP vision tower, for the variant that reads images as continuous features.
        image_tokenizer_config (`ShowoLFQTokenizerConfig`, `ShowoVQTokenizerConfig` or `dict`, *optional*):
            The image tokenizer of the model. A `dict` without a `model_type` is a `ShowoLFQTokenizerConfig`. Without an
            image tokenizer the model reads and writes only image tokens, not pixels.
        codebook_size (`int`, defaults to 8192): number of image tokens in the vocabulary.
        num_image_tokens (`int`, defaults to 256): tokens of an image at the trained size; the grid is square.
        max_text_length (`int`, defaults to 128): ids of the text part of a text-to-image sequence. `sot` and `eot`
            count, the task token does not. Longer prompts are truncated.
        image_token_offset (`int`, defaults to 50305): id of codebook index 0.
        mask_token_id (`int`, defaults to 58497): id of a masked image token.
        pad_token_id, soi_token_id, eoi_token_id, sov_token_id, eov_token_id (`int`): ids of the special tokens.
        t2i_token_id, mmu_token_id, t2v_token_id, v2v_token_id, lvg_token_id (`int`): ids of the task tokens.
        bos_token_id, eos_token_id (`int`, default to 50256): `sot` and `eot`, which start and end a text.
        image_token_id (`int`, *optional*, defaults to `sov_token_id`): id of the placeholder that images replace.
        qk_layernorm (`bool`, defaults to `True`): add a per-head LayerNorm after the query and key projections of a
            backbone that has no QK-Norm of its own.
        lm_head_bias (`bool`, *optional*): whether the head has a bias. By default only Phi's head has one.
        image_feature_size (`int`, *optional*): width of the image features that the projector takes. Defaults to the
            width of the vision tower. A model can have the projector alone; its caller then gives the features.
        continuous_latents (`bool`, defaults to `False`): read images as the image tokenizer's latents before
            quantization, through the projector, instead of as image tokens.
        projector_hidden_act (`str`, defaults to `"gelu"`): activation between the projector's two layers.
        image_num_inference_steps (`int`, defaults to 18): steps in which the pipelines make an image by default.
        image_guidance_scale (`float`, defaults to 2.75): guidance of the pipelines' images by default.
        loss_weight_t2i, loss_weight_lm, loss_weight_mmu (`float`): weights of the three losses in their sum.

    Raises:
        TypeError: for a flag or a part of the config of another type.
        ValueError: for numbers out of range, if the image tokens or the special tokens do not fit into the vocabulary, or
            if the image tokenizer has another codebook size, or if `image_feature_size` is not the width of the
            features, or for sizes far beyond those of a model.
    """

    model_type = "showo"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "text_config": CheckedSpec(AutoConfig, "phi", {"vocab_size": 58498, "qk_layernorm": True}),
        "vision_config": CheckedSpec(CLIPVisionConfig, optional=True),
        "image_tokenizer_config": ImageTokenizerSpec(ShowoLFQTokenizerConfig, optional=True),
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    text_config: Any = None
    vision_config: Any = None
    image_tokenizer_config: Any = None
    codebook_size: int = 8192
    num_image_tokens: int = 256
    max_text_length: int = 128
    image_token_offset: int = 50305
    mask_token_id: int = 58497
    pad_token_id: int | None = 50295
    soi_token_id: int = 50296
    eoi_token_id: int = 50297
    sov_token_id: int = 50298
    eov_token_id: int = 50299
    t2i_token_id: int = 50300
    mmu_token_id: int = 50301
    t2v_token_id: int = 50302
    v2v_token_id: int = 50303
    lvg_token_id: int = 50304
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    image_token_id: int | None = None
    qk_layernorm: bool = True
    lm_head_bias: bool | None = None
    image_feature_size: int | None = None
    continuous_latents: bool = False
    projector_hidden_act: str = "gelu"
    image_num_inference_steps: int = 18
    image_guidance_scale: float = 2.75
    loss_weight_t2i: float = 1.0
    loss_weight_lm: float = 0.1
    loss_weight_mmu: float = 1.0
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self.check_fields()
        super().__post_init__(**kwargs)
        for key in ("text_config", "vision_config"):
            check_part(key, getattr(self, key))
        if self.image_token_id is None:
            self.image_token_id = self.sov_token_id
        if self.image_feature_size is None:
            self.image_feature_size = self.feature_width()
        if self.lm_head_bias is None:
            self.lm_head_bias = self.text_config.model_type == "phi"
        # transformers ties heads by the top-level flag, so the backbone follows it.
        self.text_config.tie_word_embeddings = self.tie_word_embeddings
        self.check_vocabulary()
        width = self.feature_width()
        if width is not None and self.image_feature_size != width:
            source = "image tokenizer's latents" if self.continuous_latents else "vision tower"
            raise ValueError(
                f"`image_feature_size` ({self.image_feature_size}) must be the width of the {source} ({width})."
            )

    def feature_width(self) -> int | None:
        """
        Width of the image features that the model computes from pixels, or None if it computes none.

        Raises:
            ValueError: if `continuous_latents` is set without an image tokenizer, or together with a vision tower.
        """
        if not self.continuous_latents:
            return self.vision_config.hidden_size if self.vision_config is not None else None
        if self.image_tokenizer_config is None or self.vision_config is not None:
            raise ValueError(
                "`continuous_latents` needs an `image_tokenizer_config` and no `vision_config`, got "
                f"{type(self.image_tokenizer_config).__name__} and {type(self.vision_config).__name__}."
            )
        return self.image_tokenizer_config.codebook_channels

    def check_fields(self):
        """Raise `ValueError` or `TypeError` unless each field, except the configs of the parts, is of its kind and range."""
        for name in (*SPECIAL_TOKEN_ARGUMENTS, "bos_token_id", "eos_token_id", "image_token_id", "image_token_offset"):
            value = getattr(self, name)
            if value is None and name in OPTIONAL_IDS:
                continue
            for one in value if name == "eos_token_id" and isinstance(value, list) and value else [value]:
                check_count(name, one, least=0, most=LARGEST_MODEL["vocab_size"])
        check_count("codebook_size", self.codebook_size, most=LARGEST_MODEL["codebook_size"])
        check_count("num_image_tokens", self.num_image_tokens, most=LARGEST_MODEL["num_image_tokens"])
        check_count("max_text_length", self.max_text_length, least=2, most=LARGEST_MODEL["max_text_length"])
        if self.image_feature_size is not None:
            check_count("image_feature_size", self.image_feature_size, most=LARGEST_MODEL["image_feature_size"])
        check_count("image_num_inference_steps", self.image_num_inference_steps, most=MAX_COUNT)
        for name in ("image_guidance_scale", *LOSS_WEIGHTS, "initializer_range"):
            check_number(name, getattr(self, name), most=MAX_SCALE)
        for name in ("qk_layernorm", "continuous_latents", "tie_word_embeddings"):
            check_flag(name, getattr(self, name))
        if self.lm_head_bias is not None:
            check_flag("lm_head_bias", self.lm_head_bias)
        check_choice("projector_hidden_act", self.projector_hidden_act, ACT2FN)

    def check_vocabulary(self):
        """Raise `ValueError` if image tokens, mask token and special tokens overlap or exceed the vocabulary."""
        vocab_size = self.text_config.vocab_size
        last_image_id = self.image_token_offset + self.codebook_size - 1
        if not 0 <= self.image_token_offset <= last_image_id < vocab_size:
            raise ValueError(
                f"`codebook_size` ({self.codebook_size}) image tokens from `image_token_offset` "
                f"({self.image_token_offset}) on do not fit into `text_config.vocab_size` ({vocab_size})."
            )
        special = {name: value for name, value in self.special_token_ids().items() if value is not None}
        if len(set(special.values())) < len(special):
            raise ValueError(f"The special tokens must have different ids, got {special}.")
        special["image_token_id"] = self.image_token_id
        for name, value in special.items():
            if not 0 <= value < vocab_size or self.image_token_offset <= value <= last_image_id:
                raise ValueError(
                    f"`{name}` must be an id below {vocab_size} and outside the image tokens "
                    f"{self.image_token_offset}..{last_image_id}, got {value}. They start at `image_token_offset`."
                )
        tokenizer_config = self.image_tokenizer_config
        if tokenizer_config is not None and tokenizer_config.codebook_size != self.codebook_size:
            raise ValueError(
                f"`codebook_size` ({self.codebook_size}) must be the codebook size of "
                f"`image_tokenizer_config` ({tokenizer_config.codebook_size})."
            )

    def least_parameters(self) -> int:
        """A number of parameters that the model does not fall far below."""
        least = least_parameters(self.text_config) + least_parameters(self.vision_config)
        return least + (0 if self.image_tokenizer_config is None else self.image_tokenizer_config.least_parameters())

    def special_token_ids(self) -> dict[str, int | None]:
        """Ids of the special tokens, by the names of their arguments."""
        return {name: getattr(self, name) for name in SPECIAL_TOKEN_ARGUMENTS}

    @property
    def vocab_size(self) -> int:
        """Number of rows of the embedding: text ids, special tokens, image tokens, mask token."""
        return self.text_config.vocab_size

    @property
    def hidden_size(self) -> int:
        """Width of the backbone's hidden states."""
        return self.text_config.hidden_size
