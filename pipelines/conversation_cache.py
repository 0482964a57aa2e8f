"""The key-value cache of a conversation, with its ids."""

import torch
from transformers import DynamicCache

from showo_hf.models.modeling_showo import ShowoForCausalLM
from showo_hf.models.omni_attention import image_block_ids
from showo_hf.utils.adapters import adapter_version

from .encoded_prompts import EncodedPrompts
from .kv_cache import crop_to


class ConversationCache:
    """
    The token ids of a conversation that the model has read, with their keys and values.

    Args:
        model ([`ShowoForCausalLM`]): the model that reads. It must not change, except that [`reuse_prefix`] drops what
            was read with other adapters.
    """

    def __init__(self, model: ShowoForCausalLM):
        self.model = model
        self.ids: list[int] = []
        self.cache = DynamicCache(config=model.config.text_config)
        #: The prompt that guidance leads away from; encoded when the first image is generated.
        self.unconditional: EncodedPrompts | None = None
        self.adapter_version = adapter_version(model)

    def __len__(self) -> int:
        return len(self.ids)

    def crop(self, length: int):
        """Keep the first `length` ids, and drop entries that an interrupted pass left after them."""
        del self.ids[length:]  # first: the cache may hold more than the ids, never less
        if self.ids:
            crop_to(self.cache, len(self.ids))
        else:
            self.cache = DynamicCache(config=self.model.config.text_config)

    def reuse_prefix(self, ids: list[int]) -> list[int]:
        """
        Keep the longest common prefix with `ids`, and return the rest of `ids`, at least one id.

        An image is kept whole or not at all, because its positions see each other.
        """
        if self.adapter_version != adapter_version(self.model):
            self.crop(0)
            self.unconditional, self.adapter_version = None, adapter_version(self.model)
        pairs = zip(self.ids, ids, strict=False)
        known = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(self.ids), len(ids)))
        known = min(known, len(ids) - 1)
        block = image_block_ids(torch.tensor([ids]), self.model.config)[0].tolist()
        while known and block[known] >= 0 and block[known] == block[known - 1]:
            known -= 1
        self.crop(known)
        return ids[known:]

    @torch.no_grad()
    def read(self, ids: list[int], device: torch.device) -> torch.Tensor:
        """Read more ids. Return the logits (vocab_size,) of the next id."""
        logits = self.model(
            torch.tensor([ids], device=device), past_key_values=self.cache, use_cache=True, logits_to_keep=1
        ).logits
        self.ids += ids
        return logits[0, -1]

    def as_prompt(self, device: torch.device) -> EncodedPrompts:
        """All ids as the prompt of an image that follows them."""
        return EncodedPrompts(
            cache=self.cache,
            attention_mask=torch.ones(1, len(self), dtype=torch.int64, device=device),
            first_position=len(self),
            image_indices=torch.zeros(1, dtype=torch.int64, device=device),
        )
