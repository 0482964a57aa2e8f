"""`generate` of transformers for a model whose prompts hold images.

What is an image is settled when a generation begins. What the model adds is text, one id after the other, also where
it writes `soi`: so caches, assistants and looking up in the prompt give the same ids.
"""

import torch
from torch.nn import functional as F
from transformers import GenerationMixin
from transformers.masking_utils import create_causal_mask

from .omni_attention import image_block_ids


IMAGES = ("pixel_values", "image_features")  # arguments that images come in


class ShowoGenerationMixin(GenerationMixin):
    """`generate` of a [`ShowoForCausalLM`]: what transformers' own has to know of images."""

    @staticmethod
    def create_masks_for_generate(
        config, inputs_embeds, attention_mask, past_key_values, position_ids=None, is_first_iteration=False, **kwargs
    ):
        """
        The mask that `generate` makes for a static cache.

        The prompt's depends on its ids, which are not at hand here: `forward` makes it. What follows is text.
        """
        if is_first_iteration:
            return attention_mask
        text_config = config.get_text_config()
        return create_causal_mask(text_config, inputs_embeds, attention_mask, past_key_values, position_ids)

    def _validate_generated_length(self, generation_config, input_ids_length, has_default_max_length):
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)
        context = self.config.text_config.max_position_embeddings
        if input_ids_length >= context:
            raise ValueError(
                f"The prompt must be shorter than the model's {context} positions, got {input_ids_length}."
            )

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **kwargs):
        """
        As in transformers, for beams and several answers a prompt; the images of a prompt stay together.

        What is an image is settled here for the whole generation: the answer is text, whatever ids the model writes.
        """
        given = {name: kwargs.pop(name) for name in IMAGES if kwargs.get(name) is not None}
        if input_ids is not None:
            cache, positions = kwargs.get("past_key_values"), kwargs.get("position_ids")
            # Of a prompt that is partly in a cache, all ids may come or the new ones alone.
            missing = max(0, positions.shape[-1] - input_ids.shape[1]) if positions is not None else 0
            read = max(0, int(cache.get_seq_length()) - missing) if cache is not None else 0
            begins = (input_ids[:, :-1] == self.config.soi_token_id) & (input_ids[:, 1:] == self.config.image_token_id)
            unread = begins.nonzero()[:, 1] >= read  # (images of all rows)
            counts = begins[:, read:].sum(-1).tolist()
            for name, values in given.items():
                values = values[unread.to(values.device)] if len(values) == len(unread) else values
                if expand_size > 1 and len(values) == sum(counts):  # otherwise `forward` says so
                    values = torch.cat([row for row in values.split(counts) for _ in range(expand_size)])
                given[name] = values
            if kwargs.get("block_sequence_ids") is None:
                blocks = image_block_ids(input_ids, self.config)
                if given and self.mm_projector is not None and not self.config.continuous_latents:
                    blocks = torch.full_like(blocks, -1)  # features that everything sees are no blocks
                kwargs["block_sequence_ids"] = F.pad(blocks, (missing, 0), value=-1)
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, {**kwargs, **given}

    def _prefill(self, input_ids, generation_config, model_kwargs, is_first_iteration=True):
        blocks = model_kwargs.get("block_sequence_ids")
        has_images = any(model_kwargs.get(name) is not None for name in IMAGES)
        if generation_config.prefill_chunk_size is not None and (
            has_images or (blocks is not None and bool((blocks >= 0).any()))
        ):
            raise ValueError(
                "`prefill_chunk_size` must be None for a prompt with images, each of which is read in one piece, got "
                f"{generation_config.prefill_chunk_size}."
            )
        return super()._prefill(input_ids, generation_config, model_kwargs, is_first_iteration)

    def prepare_inputs_for_generation(
        self, input_ids, is_first_iteration=False, past_key_values=None, inputs_embeds=None, **kwargs
    ):
        if past_key_values is not None and not past_key_values.is_compileable:
            # An assistant's first iteration is not called so, yet it has to see the images.
            is_first_iteration |= past_key_values.get_seq_length() == 0
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            is_first_iteration=is_first_iteration,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            # The images of the prompt are in the cache by now.
            inputs["pixel_values"] = inputs["image_features"] = None
        mask = inputs.get("attention_mask")
        if mask is not None and len(mask.shape) == 4:
            inputs["block_sequence_ids"] = None  # the mask of a static cache is made, and its length no number
        return inputs

    def _get_candidate_generator(self, *args, model_kwargs, assistant_model=None, **kwargs):
        """As in transformers; an assistant of another kind, a plain language model, gets no images."""
        if assistant_model is not None and not isinstance(assistant_model, ShowoGenerationMixin):
            ours = (*IMAGES, "block_sequence_ids")
            model_kwargs = {name: value for name, value in model_kwargs.items() if name not in ours}
        return super()._get_candidate_generator(
            *args, model_kwargs=model_kwargs, assistant_model=assistant_model, **kwargs
        )
