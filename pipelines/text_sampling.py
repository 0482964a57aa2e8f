"""Logits processors for `generate`: text tokens only, and sampling with a generator."""

from collections.abc import Sequence

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from showo_hf.processing.processing_showo import ShowoProcessor


def warpers(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> LogitsProcessorList:
    """The logits warpers of transformers, in its order. Skips warpers without effect."""
    found = LogitsProcessorList()
    if temperature != 1.0:
        found.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        found.append(TopKLogitsWarper(int(top_k)))
    if top_p is not None and top_p < 1.0:
        found.append(TopPLogitsWarper(float(top_p)))
    return found


class GeneratorSampling(LogitsProcessor):
    r"""
    Turns greedy decoding into sampling with a generator by the Gumbel-max trick: if g has a standard Gumbel
    distribution, the argmax of `log p + g` has the distribution p (arXiv:1611.00712, section 2).

    Args:
        generator (`torch.Generator`, or a list with one per row): the source of the random numbers. With a list, each
            row gets the result it would get alone.
        temperature (`float`, defaults to 1.0), top_k (`int`, *optional*), top_p (`float`, *optional*): as in
            transformers.

    Example:

    ```python
    >>> sampling = GeneratorSampling(torch.Generator().manual_seed(0), top_p=0.9)
    >>> model.generate(**inputs, do_sample=False, logits_processor=[sampling])
    ```
    """

    def __init__(
        self,
        generator: torch.Generator | Sequence[torch.Generator],
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ):
        self.generator = generator
        self.warpers = warpers(temperature, top_k, top_p)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = self.warpers(input_ids, scores)
        if isinstance(self.generator, torch.Generator):
            uniform = draw(scores.shape, self.generator)
        else:
            uniform = torch.cat([draw((1, scores.shape[1]), generator) for generator in self.generator])
        tiny = torch.finfo(torch.float32).tiny
        gumbel = -(-uniform.clamp(min=tiny).log()).clamp(min=tiny).log()
        return scores + gumbel.to(scores.device)


class TextOnly(LogitsProcessor):
    """
    Allows text tokens and the end of text; masks image tokens and other special tokens.

    Args:
        processor ([`ShowoProcessor`]): defines the special ids.
        allowed (`Sequence[int]`, *optional*): special ids that stay allowed.
    """

    def __init__(self, processor: ShowoProcessor, allowed: Sequence[int] = ()):
        special = {*processor.tokenizer.all_special_ids, *processor.special_token_ids().values()}
        special -= {processor.eot_token_id, *allowed}
        self.special = torch.tensor(sorted(id for id in special if id < processor.image_token_offset))
        self.num_words = processor.image_token_offset

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = scores.index_fill(-1, self.special.to(scores.device), float("-inf"))
        scores[:, self.num_words :] = float("-inf")
        return scores


def draw(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Sample uniform numbers in [0, 1) on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device)
