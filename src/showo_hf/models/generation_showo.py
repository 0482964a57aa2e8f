"""`generate` of transformers for prompts with images.

The image blocks of a sequence are fixed when generation starts. The model then adds text, one id at a time. Even a
generated `soi` is text, so the cache, assistants and prompt lookup do not change the result.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache, GenerationConfig, GenerationMixin
from transformers.masking_utils import create_causal_mask

from ..utils.private_interfaces import TextOnlyAssistant
from ..utils.tensor_checks import check_floats, check_ids, check_positions
from ..utils.validation import MAX_COUNT, check_callable, check_count, check_flag, shown
from .omni_attention import image_block_ids, without_seen


#: The arguments of `forward` that hold images.
IMAGE_ARGUMENTS = ("pixel_values", "image_features")


class ShowoGenerationMixin(GenerationMixin):
    """`generate` of a [`ShowoForCausalLM`], which adds images to transformers' own."""

    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor=None,
        stopping_criteria=None,
        prefix_allowed_tokens_fn=None,
        synced_gpus: bool | None = None,
        assistant_model=None,
        **kwargs,
    ):
        """
        Generate text after prompts with or without images.

        The arguments are those of [`~transformers.GenerationMixin.generate`] and of [`ShowoForCausalLM.forward`].

        Args:
            inputs (`torch.LongTensor` of shape `(batch, length)`, *optional*): ids of the prompts; also as `input_ids`.
            pixel_values, image_features (`torch.Tensor`, *optional*): images for the placeholders in the prompts. If
                the cache holds the first images already, give either all images or only the new ones.
            inputs_embeds (`torch.Tensor` of shape `(batch, length, hidden)`, *optional*): embeddings of the prompts.
                With images, give `input_ids` as well: they say where the images are.
            block_sequence_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): image blocks of the prompt;
                found in the ids by default.
            assistant_model (`PreTrainedModel`, *optional*): another Show-o model, which gets the images, or a plain
                language model, which does not.

        Raises:
            TypeError, ValueError: if an argument is of another type, or of another shape or dtype.
            ValueError: if a prompt does not fit into the context, or if `prefill_chunk_size` is set for a prompt with
                images.
        """
        input_ids = inputs if inputs is not None else kwargs.get("input_ids")
        check_ids("inputs" if inputs is not None else "input_ids", input_ids)
        for name in (*IMAGE_ARGUMENTS, "inputs_embeds"):
            check_floats(name, kwargs.get(name))
        check_ids("block_sequence_ids", kwargs.get("block_sequence_ids"))
        check_positions(*(kwargs.get(name) for name in ("attention_mask", "position_ids", "past_key_values")))
        check_helpers(
            generation_config=generation_config,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            assistant_model=assistant_model,
        )
        if prefix_allowed_tokens_fn is not None:
            check_callable("prefix_allowed_tokens_fn", prefix_allowed_tokens_fn, "row", "ids")
        if synced_gpus is not None:
            check_flag("synced_gpus", synced_gpus)
            if synced_gpus and not torch.distributed.is_initialized():
                raise ValueError("`synced_gpus` must be None or False without a group of processes, got True.")
        if kwargs.get("max_new_tokens") is not None:
            check_count("max_new_tokens", kwargs["max_new_tokens"], most=MAX_COUNT)
        self.check_prompt_length(input_ids, kwargs.get("inputs_embeds"), kwargs.get("attention_mask"))
        if input_ids is not None and input_ids.shape[1] > 0:
            self.prepare_images(input_ids, kwargs)
        self.check_prefill_chunks(generation_config, kwargs)
        if assistant_model is not None and not isinstance(assistant_model, ShowoGenerationMixin):
            assistant_model = TextOnlyAssistant(assistant_model, (*IMAGE_ARGUMENTS, "block_sequence_ids"))
        return super().generate(
            inputs,
            generation_config,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            synced_gpus=synced_gpus,
            assistant_model=assistant_model,
            **kwargs,
        )

    def check_prompt_length(self, *inputs: torch.Tensor | None):
        """Raise `ValueError` if a prompt, with its length in dimension 1, leaves no room for an answer."""
        length = max((tensor.shape[1] for tensor in inputs if tensor is not None), default=0)
        context = self.config.text_config.max_position_embeddings
        if length >= context:
            raise ValueError(f"The prompt must be shorter than the model's {context} positions, got {length}.")

    def prepare_images(self, input_ids: torch.LongTensor, kwargs: dict):
        """
        Set the image blocks of a prompt in `kwargs`, and drop the images that the cache holds already.
        """
        missing, cached = cached_lengths(
            input_ids, kwargs.get("past_key_values"), kwargs.get("attention_mask"), kwargs.get("position_ids")
        )
        starts = image_starts(input_ids, self.config)
        unread = starts.nonzero()[:, 1] >= cached  # (images of all rows,)
        given = {name: kwargs[name] for name in IMAGE_ARGUMENTS if kwargs.get(name) is not None}
        for name, images in given.items():
            if len(images) == len(unread):
                kwargs[name] = images[unread.to(images.device)]
        if kwargs.get("block_sequence_ids") is not None:
            return
        blocks = image_block_ids(input_ids, self.config)
        if given and self.mm_projector is not None and not self.config.continuous_latents:
            # Every position sees CLIP's features, so they form no block.
            blocks = without_seen(blocks, input_ids == self.config.image_token_id)
        kwargs["block_sequence_ids"] = F.pad(blocks, (missing, 0), value=-1)

    def check_prefill_chunks(self, generation_config: GenerationConfig | None, kwargs: dict):
        """Raise `ValueError` if a prompt with images would be read in chunks, which could split an image."""
        settings = (kwargs, vars(generation_config or GenerationConfig()), vars(self.generation_config))
        chunk_size = next((s["prefill_chunk_size"] for s in settings if s.get("prefill_chunk_size") is not None), None)
        blocks = kwargs.get("block_sequence_ids")
        has_images = any(kwargs.get(name) is not None for name in IMAGE_ARGUMENTS)
        has_images |= blocks is not None and bool((blocks >= 0).any())
        if chunk_size is not None and has_images:
            raise ValueError(
                "`prefill_chunk_size` must be None for a prompt with images, because each image is read in one piece, "
                f"got {chunk_size}."
            )

    @staticmethod
    def create_masks_for_generate(
        config, inputs_embeds, attention_mask, past_key_values, position_ids=None, is_first_iteration=False, **kwargs
    ):
        """
        The attention mask that `generate` creates for a static cache.

        The mask of the prompt depends on its ids, which this method does not get, so `forward` creates it. All later
        positions are text.
        """
        if is_first_iteration:
            return attention_mask
        text_config = config.get_text_config()
        return create_causal_mask(text_config, inputs_embeds, attention_mask, past_key_values, position_ids)

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **kwargs):
        """Same as in transformers, for beams and several answers per prompt. The images of a prompt stay together."""
        images = {name: kwargs.pop(name) for name in IMAGE_ARGUMENTS if kwargs.get(name) is not None}
        if input_ids is not None and expand_size > 1:
            _, cached = cached_lengths(input_ids, kwargs.get("past_key_values"), kwargs.get("position_ids"))
            counts = image_starts(input_ids, self.config)[:, cached:].sum(-1).tolist()
            for name, values in images.items():
                if len(values) == sum(counts):  # otherwise `forward` raises an error
                    images[name] = torch.cat([row for row in values.split(counts) for _ in range(expand_size)])
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, {**kwargs, **images}

    def prepare_inputs_for_generation(
        self, input_ids, is_first_iteration=False, past_key_values=None, inputs_embeds=None, **kwargs
    ):
        """Same as in transformers. Images go into the first step, or into every step without a cache."""
        if past_key_values is not None and not past_key_values.is_compileable:
            # transformers does not mark the first iteration of an assistant, but it has to see the images.
            is_first_iteration |= past_key_values.get_seq_length() == 0
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            is_first_iteration=is_first_iteration,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs["pixel_values"] = inputs["image_features"] = None  # the cache holds them
        embeddings = inputs.get("inputs_embeds")
        if embeddings is not None and any(inputs.get(name) is not None for name in IMAGE_ARGUMENTS):
            # The ids say where the images are.
            inputs["input_ids"] = input_ids[:, -embeddings.shape[1] :].to(embeddings.device)
        mask = inputs.get("attention_mask")
        if mask is not None and len(mask.shape) == 4:
            # This mask includes the blocks, and `forward` cannot take the length of a static cache as a number.
            inputs["block_sequence_ids"] = None
        # transformers also forwards some arguments of `generate` itself, such as `tokenizer`.
        return {name: value for name, value in inputs.items() if name in self.known_arguments}


#: The types of the arguments of `generate` that help it.
HELPERS: dict[str, tuple[type, ...]] = {
    "generation_config": (GenerationConfig,),
    "logits_processor": (list,),  # as is `LogitsProcessorList`
    "stopping_criteria": (list,),
    "assistant_model": (nn.Module, TextOnlyAssistant),
}


def check_helpers(**helpers):
    """Raise `TypeError` unless each argument is None or of its type in `HELPERS`, and lists hold what can be called."""
    for name, value in helpers.items():
        kinds = HELPERS[name]
        if value is None:
            continue
        if not isinstance(value, kinds) or (kinds == (list,) and not all(callable(one) for one in value)):
            wanted = "a list of functions" if kinds == (list,) else f"a {kinds[0].__name__}"
            raise TypeError(f"`{name}` must be {wanted} or None, got {shown(value)}.")


def image_starts(input_ids: torch.LongTensor, config) -> torch.BoolTensor:
    """Where images given as pixels or features start, (batch, length - 1): each `soi` before a placeholder."""
    return (input_ids[:, :-1] == config.soi_token_id) & (input_ids[:, 1:] == config.image_token_id)


def cached_lengths(input_ids: torch.LongTensor, cache: Cache | None, *whole: torch.Tensor | None) -> tuple[int, int]:
    """
    Compare a prompt with its cache.

    Args:
        input_ids: all ids of the prompt, or only the ids that the cache does not hold.
        whole: tensors that span the whole prompt in their last dimension, if there are any.

    Returns:
        how many positions of the prompt `input_ids` leave out, and how many of `input_ids` the cache holds.
    """
    lengths = [tensor.shape[-1] for tensor in whole if tensor is not None]
    missing = max(0, max(lengths, default=0) - input_ids.shape[1])
    cached = max(0, int(cache.get_seq_length()) - missing) if cache is not None else 0
    return missing, cached
