"""Show-o: one transformer that reads and generates text and images (arXiv:2408.12528).

The backbone is any decoder of transformers. This file adds the omni-attention mask, a head that can compute the logits
of the image tokens alone, and three losses. `backbone.py` adds QK-Norm, `image_inputs.py` images.
"""

import inspect
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import type_before_parametrizations
from transformers import AutoModel, Cache, CLIPVisionModel, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import TransformersKwargs, can_return_tuple

from ..utils.saved_folders import CheckedWeights
from ..utils.tensor_checks import check_floats, check_ids, check_positions
from ..utils.validation import check_count, check_flag
from .backbone import add_qk_norm, cast_norms_once, fuse_activations, plan_with_whole_heads
from .configuration_showo import ShowoConfig
from .generation_showo import ShowoGenerationMixin
from .image_inputs import ShowoImageMixin
from .image_tokenizer import ShowoImageTokenizer
from .losses import check_labels, linear_cross_entropy, scored_positions
from .modeling_showo_lfq import ShowoLFQTokenizer
from .modeling_showo_vq import ShowoVQTokenizer
from .omni_attention import image_block_ids, seen_by_all, without_seen


#: The classes of image tokenizers, by `model_type`.
IMAGE_TOKENIZERS = {"showo_lfq": ShowoLFQTokenizer, "showo_vq": ShowoVQTokenizer}


@dataclass
class ShowoCausalLMOutputWithPast(CausalLMOutputWithPast):
    """
    Output of [`ShowoForCausalLM`].

    Args:
        loss (`torch.Tensor` of shape `()`): weighted sum of the three losses below, if `labels` were given.
        logits (`torch.Tensor` of shape `(batch, kept, vocab_size)`): logits of the kept positions. The last dimension
            is `codebook_size` with `codebook_only=True`. None in training with `labels`.
        loss_t2i, loss_lm, loss_mmu (`torch.Tensor` of shape `()`, *optional*): mean cross-entropy, in nats, of the
            image labels, of the text labels, and of answers about images. None if a batch has no such label.
        count_t2i, count_lm, count_mmu (`torch.LongTensor` of shape `()`, *optional*): numbers of these labels, to
            average over several batches. None where the loss is None.
    """

    loss_t2i: torch.Tensor | None = None
    loss_lm: torch.Tensor | None = None
    loss_mmu: torch.Tensor | None = None
    count_t2i: torch.LongTensor | None = None
    count_lm: torch.LongTensor | None = None
    count_mmu: torch.LongTensor | None = None


class ShowoPreTrainedModel(CheckedWeights, PreTrainedModel):
    config_class = ShowoConfig
    config: ShowoConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    output_modalities = ("text",)  # of `generate`; the pipelines generate images
    supports_gradient_checkpointing = True
    _no_split_modules = [
        *("PhiDecoderLayer", "LlamaDecoderLayer", "CLIPEncoderLayer"),
        *ShowoImageTokenizer._no_split_modules,
    ]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True


class ShowoForCausalLM(ShowoPreTrainedModel, ShowoImageMixin, ShowoGenerationMixin):
    r"""
    The Show-o model: a decoder with QK-Norm, with causal attention in text and full attention in images.

    The attention mask is computed from the ids. So `model(input_ids)` is right for text, text-to-image and
    understanding sequences, with any number of images, padded or not. `model.image_tokenizer` is the image tokenizer,
    or None if the config has none.

    Example:

    ```python
    >>> model = ShowoForCausalLM.from_pretrained(f"{EMBEDDED_MODEL}/model")
    >>> logits = model(input_ids).logits                            # (batch, length, vocab_size)
    >>> image_logits = model(input_ids, codebook_only=True).logits  # (batch, length, codebook_size)
    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    # Not quantized either: it is small, and the signs of its latents decide which image tokens come out.
    _keep_in_fp32_modules = ("image_tokenizer",)
    # The losses are means over the batch itself, so a Trainer has to average over accumulated steps.
    accepts_loss_kwargs = False

    def __init__(self, config: ShowoConfig):
        super().__init__(config)
        self.model = AutoModel.from_config(config.text_config)
        if config.qk_layernorm:
            add_qk_norm(self.model)
        fuse_activations(self.model)
        cast_norms_once(self.model)
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
            tokenizer_class = IMAGE_TOKENIZERS[config.image_tokenizer_config.model_type]
            self.image_tokenizer = tokenizer_class(config.image_tokenizer_config).requires_grad_(False)
        arguments = {*inspect.signature(self.forward).parameters, *inspect.signature(self.model.forward).parameters}
        #: The keyword arguments of `forward`, its own and the backbone's. The losses do not use `num_items_in_batch`.
        self.known_arguments = arguments.union(TransformersKwargs.__annotations__) - {"kwargs", "num_items_in_batch"}
        self.post_init()

    def initialize_weights(self):
        """
        Same as in transformers, but the vision tower initializes its own missing weights.

        In a model class of another package, transformers skips modules without parameters of their own, but CLIP
        initializes its linear layers through them.
        """
        if self.vision_tower is not None:
            self.vision_tower.initialize_weights()
        super().initialize_weights()

    def train(self, mode: bool = True):
        """Same as in torch, but the image tokenizer and the vision tower stay frozen and in evaluation mode."""
        super().train(mode)
        for frozen in (self.image_tokenizer, self.vision_tower):
            if frozen is not None:
                frozen.eval().requires_grad_(False)  # again, because loading creates new parameters
        return self

    @property
    def tp_plan(self) -> dict[str, str]:
        """The tensor-parallel plan. It splits the attention by heads if the number of processes divides the heads."""
        plan = super().tp_plan
        config = self.config.text_config
        num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return plan_with_whole_heads(plan) if self.tp_size and num_heads % self.tp_size else plan

    @tp_plan.setter
    def tp_plan(self, plan: dict[str, str] | None):
        PreTrainedModel.tp_plan.fset(self, plan)

    # Mask

    def omni_attention_mask(
        self,
        inputs_embeds: torch.Tensor,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        position_ids: torch.LongTensor | None = None,
        seen_positions: torch.BoolTensor | None = None,
        block_sequence_ids: torch.LongTensor | None = None,
    ):
        """
        The omni-attention mask, in the form that the configured attention implementation takes.

        Args:
            inputs_embeds (`torch.Tensor` of shape `(batch, length, hidden)`): gives batch size, length and dtype.
            input_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): ids of the new positions. An image
                must be complete, from `soi` to `eoi`.
            attention_mask (`torch.Tensor` of shape `(batch, cached + length)`, *optional*): 0 for pads. A
                4-dimensional mask is returned unchanged.
            past_key_values (`Cache`, *optional*): keys and values that every new position sees.
            position_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): positions.
            seen_positions (`torch.BoolTensor` of shape `(batch, length)`, *optional*): positions of image features
                that every position sees.
            block_sequence_ids (`torch.LongTensor` of shape `(batch, at most cached + length)`, *optional*): used
                instead of the blocks found in the ids. Positions after its end are text.
        """
        if attention_mask is not None and len(attention_mask.shape) == 4:
            return attention_mask
        past_length = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        or_mask_function = None
        if seen_positions is not None and seen_positions.any():
            columns = F.pad(seen_positions, (past_length, 0))
            if past_key_values is not None:
                # A static cache is longer than what it holds.
                length, _ = past_key_values.get_mask_sizes(seen_positions.shape[1], 0)
                columns = F.pad(columns, (0, length - columns.shape[1]))
            or_mask_function = seen_by_all(columns)
        if block_sequence_ids is None and input_ids is not None and (past_length == 0 or input_ids.shape[1] > 1):
            blocks = image_block_ids(input_ids, self.config)
            if seen_positions is not None:
                blocks = without_seen(blocks, seen_positions)
            block_sequence_ids = F.pad(blocks, (past_length, 0), value=-1)
            if self.training and not torch.compiler.is_compiling() and not (block_sequence_ids >= 0).any():
                block_sequence_ids = None  # rows of text alone, for which sdpa needs no mask if there are no pads
        elif block_sequence_ids is not None and block_sequence_ids.shape[1] <= past_length:
            block_sequence_ids = None  # all new positions are text, so sdpa needs no mask if there are no pads
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
        The attention mask of padded ids, (batch, cached + length): 1 for positions to see, 0 for pads. None without
        pads.

        It does not mask pads after the last id of a row. Causal attention keeps every id from seeing them, and in the
        original they see each other.
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
            input_ids (`torch.LongTensor` of shape `(batch, length)`): ids of text, special tokens and image tokens.
            attention_mask (`torch.Tensor`, *optional*): 1 for positions to see, 0 for pads, `(batch, cached + length)`.
                Without it and without `block_sequence_ids`, pads are found in `input_ids` by `pad_token_id`; a cache
                with pads in it needs the mask. A 4-dimensional mask or a flex `BlockMask` is used unchanged.
            position_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): positions; pads count by default.
            past_key_values (`Cache`, *optional*): keys and values of earlier positions.
            inputs_embeds (`torch.Tensor` of shape `(batch, length, hidden)`, *optional*): embeddings, instead of
                `input_ids`. The mask is then causal unless `block_sequence_ids` are given. With images, give both:
                `input_ids` say where blocks and placeholders are, `inputs_embeds` are the other positions' embeddings.
            labels (`torch.LongTensor` of shape `(batch, length)`, *optional*): ids to predict, -100 for positions
                without loss. In an image block the model predicts the label at its own position. Elsewhere, and for a
                `soi` outside of text-to-image rows, it predicts the label from the position before.
            image_features (`torch.Tensor` of shape `(images, tokens, features)`, *optional*): features for the
                placeholders, as in `get_image_features(...).last_hidden_state`.
            pixel_values (`torch.Tensor` of shape `(images, 3, H, W)`, *optional*): images for the placeholders. The
                vision tower encodes them if there is one; otherwise the image tokenizer does, to image tokens, or with
                `continuous_latents` to features.
            logits_to_keep (`int` or `torch.Tensor`): number of last positions to keep (0: all), or the positions to
                keep, as `(kept,)`, `(batch, kept)` or bool `(batch, length)`.
            codebook_only (`bool`): compute only the logits of the image tokens.
            block_sequence_ids (`torch.LongTensor` of shape `(batch, at most cached + length)`, *optional*): see
                [`omni_attention.image_block_ids`]. Positions after its end are text, whatever their ids. `generate`
                passes those of the prompt.
            kwargs: arguments of the backbone's `forward` and of `TransformersKwargs`, such as `output_attentions`.

        Raises:
            ValueError: if neither or both of `input_ids` and `inputs_embeds` are given (both are allowed with images),
                if images and placeholders do not match, if shapes or dtypes are not as above, or if a label that counts is
                no id of the vocabulary.
            TypeError: for an argument of another type, and for a keyword argument that nothing uses. `shift_labels` is one:
                give `labels`, unshifted.
        """
        check_ids("input_ids", input_ids)
        check_ids("labels", labels)
        check_ids("block_sequence_ids", block_sequence_ids)
        check_floats("inputs_embeds", inputs_embeds)
        check_floats("image_features", image_features)
        check_floats("pixel_values", pixel_values)
        check_positions(attention_mask, position_ids, past_key_values)
        check_choices(use_cache, logits_to_keep, codebook_only)
        self.check_inputs(input_ids, inputs_embeds, labels, image_features, pixel_values, kwargs)
        seen_positions = None
        if input_ids is not None:
            text_from = None
            if block_sequence_ids is not None:
                past_length = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
                text_from = max(0, block_sequence_ids.shape[1] - past_length)
            input_ids, inputs_embeds, seen_positions = self.embed(
                input_ids, inputs_embeds, image_features, pixel_values, text_from
            )
        if attention_mask is None and block_sequence_ids is None:
            attention_mask = self.padding_mask(input_ids, past_key_values)
        mask = self.omni_attention_mask(
            inputs_embeds,
            input_ids,
            attention_mask,
            past_key_values,
            position_ids,
            seen_positions,
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
            logits_to_keep = logits_to_keep.to(hidden_states.device)  # the last layer may be on another device
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

    def check_inputs(self, input_ids, inputs_embeds, labels, image_features, pixel_values, kwargs):
        """Raise an error for arguments of `forward` that do not go together, and for names that nothing uses."""
        unknown = [name for name in kwargs if name not in self.known_arguments]
        if unknown:
            hint = " Give `labels`, which are not shifted." if "shift_labels" in unknown else ""
            raise TypeError(f"`forward` got unexpected keyword arguments: {', '.join(unknown)}.{hint}")
        has_images = image_features is not None or pixel_values is not None
        if input_ids is None and inputs_embeds is not None and has_images:
            raise ValueError("`image_features` and `pixel_values` need `input_ids` with placeholders.")
        if (input_ids is None) == (inputs_embeds is None) and not (has_images and input_ids is not None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`, or both together with images.")
        if input_ids is not None and inputs_embeds is not None and inputs_embeds.shape[:2] != input_ids.shape:
            raise ValueError(
                "`inputs_embeds` must have the batch size and length of `input_ids`, got "
                f"{tuple(inputs_embeds.shape)} and {tuple(input_ids.shape)}."
            )
        if labels is not None and (input_ids is None or labels.shape != input_ids.shape):
            raise ValueError(
                f"`labels` need `input_ids` of their shape, got {tuple(labels.shape)} and "
                f"{None if input_ids is None else tuple(input_ids.shape)}."
            )

    def compute_logits(self, hidden_states: torch.Tensor, codebook_only: bool = False) -> torch.Tensor:
        """
        Logits (..., vocab_size) of hidden states (..., hidden).

        With `codebook_only`, the logits (..., codebook_size) of the image tokens.
        """
        if not codebook_only:
            return self.lm_head(hidden_states)
        first = self.config.image_token_offset
        rows = slice(first, first + self.config.codebook_size)
        head = self.lm_head
        if not has_plain_weight(head, hidden_states):
            return head(hidden_states)[..., rows]
        bias = head.bias[rows] if head.bias is not None else None
        return F.linear(hidden_states, head.weight[rows], bias)

    def compute_losses(
        self, hidden_states: torch.Tensor, input_ids: torch.LongTensor, labels: torch.LongTensor
    ) -> dict[str, torch.Tensor | None]:
        """
        The three losses, the numbers of their labels, and the weighted sum. Logits are computed at labelled positions
        only. [`losses.scored_positions`] says which labels count for which loss.
        """
        input_ids, labels = input_ids.to(hidden_states.device), labels.to(hidden_states.device)
        results = {}
        weighted = []
        for name, scored in scored_positions(input_ids, labels, self.config).items():
            # A text label is predicted from the position before.
            predictors = scored if name == "t2i" else F.pad(scored[:, 1:], (0, 1))
            loss = self.mean_cross_entropy(hidden_states[predictors], labels[scored])
            results[f"loss_{name}"] = loss
            results[f"count_{name}"] = None if loss is None else scored.sum()
            if loss is not None:
                weighted.append(getattr(self.config, f"loss_weight_{name}") * loss)
        # Without labels the loss is a zero with a gradient, of the head as well: DDP waits for all trained parameters.
        results["loss"] = sum(weighted) if weighted else self.compute_logits(hidden_states[:, :1]).float().sum() * 0.0
        return results

    def mean_cross_entropy(self, hidden_states: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor | None:
        """Mean cross-entropy in float32 of hidden states (scored, hidden), or None if there are none."""
        if not len(labels):
            return None
        check_labels(labels, self.config.vocab_size)
        head = self.lm_head
        if has_plain_weight(head, hidden_states):
            return linear_cross_entropy(hidden_states, head.weight, head.bias, labels)
        return F.cross_entropy(self.compute_logits(hidden_states).float(), labels)  # (scored, vocab_size)


def check_choices(use_cache, logits_to_keep, codebook_only):
    """Raise `TypeError` or `ValueError` for choices that [`ShowoForCausalLM.forward`] does not have."""
    if use_cache is not None:
        check_flag("use_cache", use_cache)
    check_flag("codebook_only", codebook_only)
    if not isinstance(logits_to_keep, torch.Tensor):
        check_count("logits_to_keep", logits_to_keep, least=0)  # more than there are keeps all


def has_plain_weight(head: nn.Module, hidden_states: torch.Tensor) -> bool:
    """
    Whether rows of a head's weight can be multiplied with `hidden_states` without the head's own `forward`.

    That is not so for heads with an adapter, quantized or sharded weights, and weights that are offloaded.
    """
    if type_before_parametrizations(head) is not nn.Linear:
        return False
    weight = head.weight
    return (
        type(weight) in (nn.Parameter, torch.Tensor)
        and weight.shape == (head.out_features, head.in_features)  # DeepSpeed leaves an empty one
        and weight.device == hidden_states.device
        and weight.dtype == hidden_states.dtype
    )
