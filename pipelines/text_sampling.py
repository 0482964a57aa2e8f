"""What `generate` of transformers is given here: words alone to choose from, and draws that come from a generator."""

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
    """transformers' own warpers, in its order; none where a value changes nothing."""
    found = LogitsProcessorList()
    if temperature != 1.0:
        found.append(TemperatureLogitsWarper(temperature))
    if top_k:
        found.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1.0:
        found.append(TopPLogitsWarper(top_p))
    return found


class GeneratorSampling(LogitsProcessor):
    r"""
    Turns greedy decoding into sampling with a generator, by Gumbel's trick: the argmax of `log p + g`, with g from a
    standard Gumbel distribution, is distributed as p (arXiv:1611.00712, section 2).

    Args:
        generator (`torch.Generator` or a list with one a row): where the draws come from. With a list each row comes out
            as it would alone.
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
    Leaves words alone to be chosen: no image codes and no special tokens but the end of text.

    Args:
        processor ([`ShowoProcessor`]): knows which ids these are.
        allowed (`Sequence[int]`, *optional*): ids of special tokens that may be chosen all the same.
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
    """Uniform numbers in [0, 1) on the generator's own device."""
    return torch.rand(shape, generator=generator, device=generator.device)
