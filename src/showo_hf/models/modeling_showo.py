"""Show-o: one transformer that reads and makes text and images (arXiv:2408.12528).

The backbone is any decoder of transformers. This file adds what Show-o changes of it: the omni-attention mask, QK-Norm
where the backbone has none, a head of which parts can be asked for, the image tokenizer, and three losses.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, Cache, CLIPVisionModel, PreTrainedModel
from transformers.activations import ACT2FN, NewGELUActivation
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple

from .configuration_showo import ShowoConfig
from .generation_showo import ShowoGenerationMixin
from .modeling_showo_lfq import ShowoLFQTokenizer
from .omni_attention import image_block_ids, seen_by_all, starts_with


@dataclass
class ShowoCausalLMOutputWithPast(CausalLMOutputWithPast):
    """
    Output of [`ShowoForCausalLM`].

    Args:
        loss (`torch.Tensor` of shape `()`): weighted sum of the losses that follow, where `labels` were given.
        logits (`torch.Tensor` of shape `(batch, kept, vocab_size)`): scores of the kept positions; the last dimension
            is `codebook_size` with `codebook_only=True`. None in training with `labels`.
        loss_t2i, loss_lm, loss_mmu (`torch.Tensor` of shape `()`, *optional*): mean cross-entropy, in nats, of the
            image labels, of text, and of answers about images. None where a batch has no such label.
    """

    loss_t2i: torch.Tensor | None = None
    loss_lm: torch.Tensor | None = None
    loss_mmu: torch.Tensor | None = None


class PerHeadLayerNorm(nn.LayerNorm):
    """LayerNorm over each head's channels, weights shared by the heads: (..., heads * head_dim) to the same shape."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        heads = hidden_states.unflatten(-1, (-1, self.normalized_shape[0]))  # (..., heads, head_dim)
        return super().forward(heads).flatten(-2)


def add_qk_norm(backbone: PreTrainedModel, eps: float = 1e-5):
    """
    Put a [`PerHeadLayerNorm`] behind the query and key projections of every attention layer that has none.

    The projections become `nn.Sequential(proj, norm)`, so that quantization and adapters still find plain linear layers.
    Norms that a backbone brings along (`q_layernorm` of Phi, `q_norm` of Qwen3) are left as they are.

    Raises:
        ValueError: if no layer has separate query and key projections, as in backbones that fuse them.
    """
    found = False
    for module in list(backbone.modules()):
        has_projections = isinstance(getattr(module, "q_proj", None), nn.Linear) and hasattr(module, "k_proj")
        found |= has_projections
        if not has_projections or hasattr(module, "q_layernorm") or hasattr(module, "q_norm"):
            continue
        for name in ("q_proj", "k_proj"):
            norm = PerHeadLayerNorm(module.head_dim, eps=eps)
            setattr(module, name, nn.Sequential(OrderedDict(proj=getattr(module, name), norm=norm)))
    if not found:
        raise ValueError(
            f"`qk_layernorm` needs a backbone with `q_proj` and `k_proj` layers, got {type(backbone).__name__}; "
            "set it to False for this one."
        )


def fuse_activations(backbone: PreTrainedModel):
    """
    Compute Phi's `gelu_new` by torch's one kernel for the same formula, instead of seven elementwise operations.
    """
    for module in list(backbone.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


class ShowoPreTrainedModel(PreTrainedModel):
    config_class = ShowoConfig
    config: ShowoConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    output_modalities = ("text",)  # of `generate`; images are made by the pipelines, with a scheduler
    supports_gradient_checkpointing = True
    _no_split_modules = ["PhiDecoderLayer", "LlamaDecoderLayer", "CLIPEncoderLayer", "ResnetBlock2D", "UNetMidBlock2D"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True


class ShowoForCausalLM(ShowoPreTrainedModel, ShowoGenerationMixin):
    r"""
    The Show-o model: a decoder with QK-Norm in which text is causal and images attend in full.

    `model(input_ids)` is right for text, text-to-image and understanding sequences, with one or several images,
    padded or not: the mask is made from the ids. The image tokenizer is `model.image_tokenizer`, or None.

    Example:

    ```python
    >>> model = ShowoForCausalLM.from_pretrained(f"{EMBEDDED_MODEL}/model")
    >>> logits = model(input_ids).logits                          # (batch, length, vocab_size)
    >>> codes = model(input_ids, codebook_only=True).logits       # (batch, length, codebook_size)
    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    # Nor is it quantized. It is small beside the transformer, and the signs of its latents decide on the codes.
    _keep_in_fp32_modules = ("image_tokenizer",)
    accepts_loss_kwargs = (
        False  # the losses are means of their own, so a Trainer has to average over accumulated steps
    )

    def __init__(self, config: ShowoConfig):
        super().__init__(config)
        self.model = AutoModel.from_config(config.text_config)
        if config.qk_layernorm:
            add_qk_norm(self.model)
        fuse_activations(self.model)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.vision_tower = self.mm_projector = self.image_tokenizer = None
        if config.vision_config is not None:
            self.vision_tower = CLIPVisionModel(config.vision_config).requires_grad_(False)
        if config.image_feature_size is not None:
            self.mm_projector = nn.Sequential(
                nn.Linear(config.image_feature_size, config.hidden_size),
                ACT2FN[config.projector_hidden_act],
                nn.Linear(config.hidden_size, config.hidden_size),
            )
        if config.image_tokenizer_config is not None:
            self.image_tokenizer = ShowoLFQTokenizer(config.image_tokenizer_config).requires_grad_(False)
        self.post_init()

    def train(self, mode: bool = True):
        """As in torch, but the image tokenizer and the vision tower stay frozen and in evaluation mode."""
        super().train(mode)
        for frozen in (self.image_tokenizer, self.vision_tower):
            if frozen is not None:
                frozen.eval().requires_grad_(False)  # here too, since loading makes new parameters
        return self

    # Images in

    @torch.no_grad()
    @apply_forward_hook
    def encode_images(self, pixel_values: torch.Tensor) -> torch.LongTensor:
        """
        Images to vocabulary ids.

        Args:
            pixel_values (`torch.Tensor` of shape `(images, 3, H, W)`): pixels in [-1, 1].

        Returns:
            `torch.LongTensor` of shape `(images, tokens)`, row by row, with the vocabulary offset.

        Raises:
            ValueError: if the model has no image tokenizer, or it cannot encode that size.
        """
        if self.image_tokenizer is None:
            raise ValueError("`pixel_values` need an image tokenizer, and this model's config has none.")
        return self.image_tokenizer.encode(pixel_values).image_tokens

    @torch.no_grad()
    @apply_forward_hook
    def decode_images(self, image_tokens):
        return self.image_tokenizer.decode(image_tokens).sample

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Images to continuous features: CLIP's, the tower's penultimate hidden states without the class token; or with
        `continuous_latents` the image tokenizer's, before quantization and row by row.

        `pixel_values` is (images, 3, H, W) after the tower's own preprocessing, or in [-1, 1]; the result (images,
        tokens, `image_feature_size`), before the projector.
        """
        if self.config.continuous_latents:
            with torch.no_grad():
                return self.image_tokenizer.encode(pixel_values).latents.flatten(2).transpose(1, 2)
        if self.vision_tower is None:
            raise ValueError("`get_image_features` needs a vision tower, and this model's config has none.")
        with torch.no_grad():
            states = self.vision_tower(
                pixel_values.to(self.vision_tower.dtype), output_hidden_states=True
            ).hidden_states
        return states[-2][:, 1:]

    def embed(
        self,
        input_ids: torch.LongTensor,
        image_features: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        text_from: int | None = None,
    ) -> tuple[torch.LongTensor, torch.Tensor, torch.BoolTensor | None]:
        """
        Ids and images to embeddings. From the place `text_from` on a placeholder is a word like others.

        Returns:
            the ids (batch, length) with image codes in place of placeholders, their embeddings (batch, length,
            hidden), and which positions hold features that everything sees (batch, length), None without such.
        """
        if image_features is not None and pixel_values is not None:
            raise ValueError("Give `image_features` or `pixel_values`, not both.")
        places = input_ids == self.config.image_token_id
        if text_from is not None:
            places[:, text_from:] = False
        if pixel_values is not None and (self.vision_tower is not None or self.config.continuous_latents):
            image_features = self.get_image_features(pixel_values)
        elif pixel_values is not None:
            image_ids = self.encode_images(pixel_values).flatten(1) + self.config.image_token_offset
            check_places(places, image_ids.numel(), "pixel_values")
            return_ids = input_ids.masked_scatter(places, image_ids.to(input_ids.device))
            return return_ids, self.model.get_input_embeddings()(return_ids), None
        embeddings = self.model.get_input_embeddings()(input_ids)
        if image_features is None:
            return input_ids, embeddings, None
        if self.mm_projector is None:
            raise ValueError("`image_features` need a projector, and this model's config has no `image_feature_size`.")
        features = self.mm_projector(image_features.to(embeddings.dtype)).flatten(0, -2)  # (all features, hidden)
        check_places(places, features.shape[0], "image_features")
        embeddings = embeddings.masked_scatter(places.unsqueeze(-1), features.to(embeddings.device))
        # The tokenizer's latents are blocks like the codes that they stand for; CLIP's features are seen by everything.
        return input_ids, embeddings, None if self.config.continuous_latents else places

    # Mask

    def omni_attention_mask(
        self,
        inputs_embeds: torch.Tensor,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        position_ids: torch.LongTensor | None = None,
        feature_places: torch.BoolTensor | None = None,
        block_sequence_ids: torch.LongTensor | None = None,
    ):
        """
        The mask for the configured attention implementation; see [`omni_attention`] for the rule.

        The ids are those of the new positions; what is in the cache is seen by all of them. An image must be fed in
        one piece, `soi` to `eoi`. `block_sequence_ids` (batch, at most cached + new) replaces the blocks found in the
        ids; positions behind its end are text.
        """
        if attention_mask is not None and len(attention_mask.shape) == 4:
            return attention_mask
        past_length = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        or_mask_function = None
        if feature_places is not None and feature_places.any():
            columns = F.pad(feature_places, (past_length, 0))
            if past_key_values is not None:
                # A static cache has room behind them.
                length, _ = past_key_values.get_mask_sizes(feature_places.shape[1], 0)
                columns = F.pad(columns, (0, length - columns.shape[1]))
            or_mask_function = seen_by_all(columns)
        elif block_sequence_ids is None and input_ids is not None and (past_length == 0 or input_ids.shape[1] > 1):
            block_sequence_ids = F.pad(image_block_ids(input_ids, self.config), (past_length, 0), value=-1)
        elif block_sequence_ids is not None and block_sequence_ids.shape[1] <= past_length:
            block_sequence_ids = None  # all new positions are text, and without pads sdpa needs no mask for them
        return create_causal_mask(
            config=self.model.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            or_mask_function=or_mask_function,
            block_sequence_ids=block_sequence_ids,
        )

    def padding_mask(
        self, input_ids: torch.LongTensor | None, past_key_values: Cache | None
    ) -> torch.LongTensor | None:
        """
        1 where a position may be seen, 0 at pads, (batch, cached + new); None where there is nothing to hide.

        Pads behind the last id of a row are not hidden: causality keeps them from every id, and among themselves the
        original lets them see each other.
        """
        if input_ids is None or input_ids.shape[1] == 1 or self.config.pad_token_id is None:
            return None
        is_id = input_ids != self.config.pad_token_id
        seen = is_id | (is_id.flip(-1).cumsum(-1).flip(-1) == 0)
        if bool(seen.all()):
            return None
        past_length = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        return F.pad(seen.long(), (past_length, 0), value=1)

    # Forward

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        image_features: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        codebook_only: bool = False,
        block_sequence_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> ShowoCausalLMOutputWithPast:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): ids of text, special tokens and image codes.
            attention_mask (`torch.Tensor`, *optional*): 1 for positions to see, 0 for pads, `(batch, cached + length)`;
                made from `pad_token_id` where neither it nor `block_sequence_ids` is given, which needs all ids: with
                pads in the cache give the mask. A 4-dimensional mask or a flex `BlockMask` is used as it is.
            position_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): pads count by default.
            past_key_values (`Cache`, *optional*): keys and values of earlier positions.
            inputs_embeds (`torch.Tensor` of shape `(batch, length, hidden)`, *optional*): in place of `input_ids`; the
                mask is then causal unless `block_sequence_ids` are given.
            labels (`torch.LongTensor` of shape `(batch, length)`, *optional*): ids to predict, -100 where nothing is
                scored. Inside an image block a label is the id at its own place; elsewhere, and for a `soi` outside
                of text-to-image rows, it is predicted from the position before it.
            image_features (`torch.Tensor` of shape `(images, tokens, features)`, *optional*): for the placeholders.
            pixel_values (`torch.Tensor` of shape `(images, 3, H, W)`, *optional*): for the placeholders; encoded by the
                vision tower where there is one, by the image tokenizer otherwise (to codes, or with
                `continuous_latents` to features).
            logits_to_keep (`int` or `torch.Tensor`): the last so many positions (0: all), or the places to keep, as
                `(kept,)`, `(batch, kept)` or bool `(batch, length)`.
            codebook_only (`bool`): give the logits of the image codes alone.
            block_sequence_ids (`torch.LongTensor` of shape `(batch, at most cached + length)`, *optional*): see
                [`omni_attention.image_block_ids`]. Positions behind its end are text, whatever their ids. `generate`
                gives those of the prompt.

        Raises:
            ValueError: if neither or both of `input_ids` and `inputs_embeds` are given, if images and placeholders do
                not match, or if `labels` have another shape than the ids.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        feature_places = None
        if input_ids is not None:
            text_from = None
            if block_sequence_ids is not None:
                past_length = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
                text_from = max(0, block_sequence_ids.shape[1] - past_length)
            input_ids, inputs_embeds, feature_places = self.embed(input_ids, image_features, pixel_values, text_from)
        elif image_features is not None or pixel_values is not None:
            raise ValueError("`image_features` and `pixel_values` need `input_ids` with placeholders.")
        if labels is not None and (input_ids is None or labels.shape != input_ids.shape):
            raise ValueError(
                f"`labels` need `input_ids` of their shape, got {tuple(labels.shape)} and "
                f"{None if input_ids is None else tuple(input_ids.shape)}."
            )
        if attention_mask is None and block_sequence_ids is None:
            attention_mask = self.padding_mask(input_ids, past_key_values)
        mask = self.omni_attention_mask(
            inputs_embeds,
            input_ids,
            attention_mask,
            past_key_values,
            position_ids,
            feature_places,
            block_sequence_ids,
        )
        outputs = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state  # (batch, length, hidden)
        if isinstance(logits_to_keep, torch.Tensor):
            logits_to_keep = logits_to_keep.to(hidden_states.device)  # the last layer may lie on another device
        losses = {} if labels is None else self.compute_losses(hidden_states, input_ids, labels)
        logits = None
        if labels is None or not self.training:
            logits = self.compute_logits(slice_logits_to_keep(hidden_states, logits_to_keep), codebook_only)
        return ShowoCausalLMOutputWithPast(
            **losses,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def compute_logits(self, hidden_states: torch.Tensor, codebook_only: bool = False) -> torch.Tensor:
        """Scores (..., vocab_size) of hidden states (..., hidden), or (..., codebook_size) of the image codes alone."""
        if not codebook_only:
            return self.lm_head(hidden_states)
        first = self.config.image_token_offset
        rows = slice(first, first + self.config.codebook_size)
        head = self.lm_head
        if type(head) is not nn.Linear or hasattr(head, "_hf_hook") or hasattr(head.weight, "__tensor_flatten__"):
            # Adapted, offloaded or quantized: only the head's own forward knows its weights.
            return head(hidden_states)[..., rows]
        bias = head.bias[rows] if head.bias is not None else None
        return F.linear(hidden_states, head.weight[rows], bias)

    def compute_losses(
        self, hidden_states: torch.Tensor, input_ids: torch.LongTensor, labels: torch.LongTensor
    ) -> dict[str, torch.Tensor | None]:
        """
        The three losses and their weighted sum. Logits are computed at labelled positions only.

        Image labels are scored at their own place. A text label is scored at the place before it: as `loss_mmu` in a
        row that starts with `mmu`, not at all in one that starts with `t2i`, as `loss_lm` otherwise. So is a labelled
        `soi` outside of a text-to-image row: it is the word by which the model opens an image.
        """
        config = self.config
        input_ids, labels = input_ids.to(hidden_states.device), labels.to(hidden_states.device)
        scored = labels != -100
        in_image = image_block_ids(input_ids, config) >= 0
        # The task token is in the block for attention, yet it is no part of the image.
        in_image &= input_ids != config.mmu_token_id
        is_mmu = starts_with(input_ids, config.mmu_token_id, config.pad_token_id).unsqueeze(-1)
        is_t2i = starts_with(input_ids, config.t2i_token_id, config.pad_token_id).unsqueeze(-1)
        is_word = ~in_image | (input_ids == config.soi_token_id)
        text = (scored & is_word & ~is_t2i)[:, 1:]
        next_labels = labels[:, 1:]
        losses = {
            "loss_t2i": self.mean_cross_entropy(hidden_states, labels, scored & in_image),
            "loss_lm": self.mean_cross_entropy(hidden_states[:, :-1], next_labels, text & ~is_mmu),
            "loss_mmu": self.mean_cross_entropy(hidden_states[:, :-1], next_labels, text & is_mmu),
        }
        weighted = [
            getattr(config, f"loss_weight_{name[5:]}") * loss for name, loss in losses.items() if loss is not None
        ]
        # A batch without any label gives a zero that still has a gradient, so that a trainer can go on.
        losses["loss"] = sum(weighted) if weighted else hidden_states.sum() * 0.0
        return losses

    def mean_cross_entropy(
        self, hidden_states: torch.Tensor, labels: torch.LongTensor, places: torch.BoolTensor
    ) -> torch.Tensor | None:
        """Mean cross-entropy in float32 over the marked places; None where there are none."""
        if not places.any():
            return None
        logits = self.compute_logits(hidden_states[places])  # (marked, vocab_size)
        return F.cross_entropy(logits.float(), labels[places])


def check_places(places: torch.BoolTensor, available: int, name: str):
    """Raise `ValueError` unless there are as many placeholders as tokens or features to put there."""
    wanted = int(places.sum())
    if wanted != available:
        raise ValueError(f"`{name}` give {available} image positions, and the ids have {wanted} placeholders.")
