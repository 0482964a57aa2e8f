"""Images as one gets them back from the model: decoded from their tokens, and encoded again."""

import random
from typing import Any

import torch

from recipes.image_tokens import as_in_a_file
from recipes.world.scenes import Scene
from showo_hf import ShowoDiffusionDecoder
from showo_hf.models.image_tokenizer import ShowoImageTokenizer


_IMAGES_AT_ONCE = 32


class Redrawer:
    """
    Replaces the tokens of a share of scenes by those that their decoded images have.

    Some tokens of an image do not come back. A model that has never seen those in their place misreads what it drew itself.

    Args:
        image_tokenizer: of the tokens.
        decoder: a diffusion decoder for it.
        share: the share of the scenes.
        seed: seed of the choice and of the decoder's noise.
    """

    def __init__(
        self, image_tokenizer: ShowoImageTokenizer, decoder: ShowoDiffusionDecoder, share: float, seed: int = 0
    ):
        self.image_tokenizer, self.decoder, self.share = image_tokenizer, decoder, share
        self.rng, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def __call__(self, images: dict[Scene, Any]) -> dict[Scene, Any]:
        """The tokens of scenes, as rows of integers; some of them those of the decoded images."""
        chosen = [scene for scene in images if self.rng.random() < self.share]
        if not chosen:
            return images
        tokens = torch.tensor([images[scene] for scene in chosen])
        redrawn = torch.cat([self.redraw(part) for part in tokens.split(_IMAGES_AT_ONCE)])
        return images | dict(zip(chosen, redrawn.tolist(), strict=True))

    @torch.no_grad()
    def redraw(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (images, h, w) int64 to those of their decoded images, which have 8 bits, as in a file."""
        plain = self.image_tokenizer.decode(tokens).sample.clamp(-1, 1)
        codes = self.image_tokenizer.codes_of(tokens)
        pixels = self.decoder.decode(codes, plain, generator=self.generator).sample
        return self.image_tokenizer.encode(as_in_a_file(pixels)).image_tokens
