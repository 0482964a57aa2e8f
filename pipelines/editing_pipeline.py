"""What the pipelines share that begin with an image: reading it, and what becomes of its pixels."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import logging

from showo_hf.processing.images import flatten_images, is_token_grid, load_image
from showo_hf.schedulers.masking_schedules import get_masking_schedule
from showo_hf.schedulers.scheduling_utils import Generators, sample_uniform
from showo_hf.utils.validation import check_share

from .encoded_prompts import EncodedPrompts
from .image_pipeline import ShowoImagePipeline
from .masks import paste, remasked
from .pipeline_utils import FillingOptions, own_entry
from .prompts import PromptBatch
from .windows import plan_windows


logger = logging.get_logger(__name__)


GROUPS = 4  # in which tokens are hidden in turn, to ask how likely each is
REMASKINGS = ("uncertain", "random")


@dataclass(frozen=True)
class Source:
    """
    Images to begin with.

    Args:
        tokens (`torch.LongTensor` of shape `(batch, h, w)`).
        pixels (`torch.Tensor` of shape `(batch, 3, H, W)`): in [-1, 1]; None where tokens were given.
    """

    tokens: torch.LongTensor
    pixels: torch.Tensor | None


class ShowoEditingPipeline(ShowoImagePipeline):
    """Base of the pipelines that change an image; components `model`, `processor`, `scheduler`."""

    def check_repainting(self, strength: float, remasking: str):
        """Raise `ValueError` for a strength outside [0, 1], or a way of remasking that does not exist."""
        check_share("strength", strength)
        if remasking not in REMASKINGS:
            raise ValueError(f"`remasking` must be one of {list(REMASKINGS)}, got {remasking!r}.")

    def check_preserving(self, preserve_pixels: bool, images: list[Any] | torch.Tensor, output_type: str):
        """Raise `ValueError` where there are no pixels to put back."""
        if preserve_pixels and output_type == "latent":
            raise ValueError(
                "`preserve_pixels` must be False for `output_type='latent'`, which has no pixels, got True."
            )
        if preserve_pixels and isinstance(images, torch.Tensor):
            raise ValueError(
                "`preserve_pixels` must be False for an `image` of tokens, which has no pixels, got True."
            )

    def load_images(
        self, image: Any, num_prompts: int, height: int | None, width: int | None
    ) -> list[Any] | torch.Tensor:
        """
        One image, or one for each prompt, as PIL images; token grids as int64 (1 or prompts, h, w).

        Raises:
            ValueError, TypeError: for what is no image, another number of them, images that come out with different
                sizes, or grids beside `height` and `width`.
        """
        if isinstance(image, (list, tuple)) and image and all(map(is_token_grid, image)):
            if len({one.shape for one in image}) > 1:
                raise ValueError(
                    f"`image` must hold token grids of one size, got {[tuple(one.shape) for one in image]}."
                )
            image = torch.stack(tuple(image))
        if isinstance(image, torch.Tensor) and image.dtype == torch.int64:
            grids = image[None] if image.ndim == 2 else image
            expected = 1 if len(grids) == 1 else num_prompts
            self.check_token_grids("image", grids, expected, self.unknown_code - 1)
            if height is not None or width is not None:
                raise ValueError(
                    "`height` and `width` must be None for an `image` of tokens, which has a size of its own, "
                    f"got {height} and {width}."
                )
            return grids
        if self.image_tokenizer is None:
            raise ValueError(
                f"`image` must be a token grid for a model without image tokenizer, got {type(image).__name__}."
            )
        self.check_size(height, width)
        images = [load_image(one, "image", max_aspect=torch.inf) for one in flatten_images(image)]
        if len(images) not in (1, num_prompts):
            raise ValueError(
                f"`image` must be one image or one for each of the {num_prompts} prompts, got {len(images)}."
            )
        sizes = {self.image_size((pil_image.height, pil_image.width), height, width) for pil_image in images}
        if len(sizes) > 1:
            raise ValueError(
                f"`image` must hold images of one aspect, or `height` and `width` be given, got sizes {sorted(sizes)}."
            )
        return images

    def image_size(self, size: tuple[int, int], height: int | None, width: int | None) -> tuple[int, int]:
        """
        The size in pixels, (height, width), at which an image of another size is worked on.

        As asked for; else with the image's aspect, and the trained size as far as it goes: the shorter side gets the
        trained length, and both are multiples of a token's.
        """
        trained = [side * self.patch for side in self.default_grid]

        def whole(length: float) -> int:
            return max(self.patch, round(length / self.patch) * self.patch)

        if height is not None or width is not None:
            return height or whole(width * size[0] / size[1]), width or whole(height * size[1] / size[0])
        scale = max(trained[0] / size[0], trained[1] / size[1])
        return whole(size[0] * scale), whole(size[1] * scale)

    @torch.no_grad()
    def encode_images(
        self, images: list[Any] | torch.Tensor, batch_size: int, height: int | None, width: int | None
    ) -> Source:
        """Loaded images to tokens, each repeated to make up the batch."""
        self.load_offloaded()
        if isinstance(images, torch.Tensor):
            self.warn_of_size(tuple(images.shape[1:]))
            return Source(repeat_to(images.to(self._execution_device), batch_size), None)
        size = self.image_size((images[0].height, images[0].width), height, width)
        self.warn_of_size((size[0] // self.patch, size[1] // self.patch))
        resizer = VaeImageProcessor(vae_scale_factor=self.patch, resample="bicubic")
        pixels = resizer.preprocess(images, *size).to(self._execution_device)
        tokens = self.image_tokenizer.encode(pixels).image_tokens
        return Source(repeat_to(tokens, batch_size), repeat_to(pixels, batch_size))

    def begin_index(self, num_inference_steps: int, strength: float) -> int:
        """
        The step to begin with where a share `strength` of the tokens is unknown: steps that would leave more than that
        unknown are left out.
        """
        if strength == 1:
            return 0
        unknown_after = get_masking_schedule(own_entry(self.scheduler, "masking_schedule", "linear"))
        shares = unknown_after(torch.arange(1, num_inference_steps + 1) / num_inference_steps)
        return next((step for step, share in enumerate(shares) if share < strength), num_inference_steps - 1)

    def choose_unknown(
        self,
        tokens: torch.LongTensor,
        candidates: torch.BoolTensor,
        strength: float,
        remasking: str,
        batch: PromptBatch,
        generator: Generators,
    ) -> torch.BoolTensor:
        """
        The share `strength` of the candidates, (batch, h, w): the most uncertain ones, or random ones.
        """
        if strength == 1 or not bool(candidates.any()):
            return candidates
        if strength == 0:
            return torch.zeros_like(candidates)
        flat = candidates.flatten(1)
        if remasking == "random":
            order = sample_uniform(flat, generator)
        else:
            prompts = self.encode_batch(replace(batch, negative_prompt=None), False, tuple(tokens.shape[1:]))
            order = self.likelihoods(tokens, prompts, generator).flatten(1)
        return remasked(flat, strength, order).view_as(candidates)

    def likelihoods(self, tokens: torch.LongTensor, prompts: EncodedPrompts, generator: Generators) -> torch.Tensor:
        """
        log p of each token given the others and the prompt, (batch, h, w).

        A model of masked tokens tells nothing of those that it sees; so a quarter of them is hidden at a time, in random
        groups: the pseudo-likelihood of "Masked language model scoring" (arXiv:1910.14659), by groups.
        """
        scores = torch.zeros(tokens.shape, device=tokens.device)
        group = sample_uniform(tokens.flatten(1), generator).argsort(-1).argsort(-1).view_as(tokens) % GROUPS
        everywhere = torch.ones_like(tokens[0], dtype=torch.bool)
        for window in plan_windows(everywhere, self.default_grid):
            given, cropped = tokens[:, *window], prompts.crop(*window)
            ids = self.image_input_ids(given.flatten(1))[prompts.sample_of_rows(len(given))]
            attention_mask = self.image_attention_mask(prompts, ids)
            for number in range(GROUPS):
                hidden = group[:, *window] == number
                masked = given.masked_fill(hidden, self.unknown_code)
                logits = self.predict_codes(masked.flatten(1), cropped, attention_mask, 1.0)
                found = logits.float().log_softmax(-1).gather(-1, given.flatten(1).unsqueeze(-1)).squeeze(-1)
                scores[:, *window] = torch.where(hidden, found.view_as(given), scores[:, *window])
        return scores

    def repaint(
        self,
        source: Source,
        marked: torch.BoolTensor,
        strength: float,
        remasking: str,
        preserve_pixels: bool,
        batch: PromptBatch,
        output_type: str,
        options: FillingOptions,
    ) -> Any:
        """The images with the marked tokens, (batch, h, w), or a share `strength` of them, painted anew."""
        unknown = self.choose_unknown(source.tokens, marked, strength, remasking, batch, options.generator)
        if not bool(unknown.flatten(1).any(1).all()):
            logger.warning("There is nothing to paint: an image comes back as it is.")
        latents = source.tokens.masked_fill(unknown, self.unknown_code)
        options = replace(options, begin_index=self.begin_index(options.num_inference_steps, strength))
        latents = self.make_images(latents, batch, options)
        return self.decode_edited(latents, source, unknown, preserve_pixels, output_type)

    def decode_edited(
        self,
        latents: torch.LongTensor,
        source: Source,
        unknown: torch.BoolTensor,
        preserve_pixels: bool,
        output_type: str,
    ):
        """
        Tokens to images as `output_type` says; with `preserve_pixels`, and of an image in which nothing was painted, the
        original pixels where that is so.
        """
        preserved = ~unknown.flatten(1).any(1) | preserve_pixels  # (batch,)
        if output_type == "latent" or source.pixels is None or not bool(preserved.any()):
            return self.decode_latents(latents, output_type)
        self.load_offloaded()
        pixels = self.image_tokenizer.decode(latents).sample.float()
        pixels = torch.where(preserved[:, None, None, None], paste(pixels, source.pixels, unknown), pixels)
        return self.image_processor.postprocess(pixels, output_type=output_type)


def repeat_to(tensor: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Each row as often as makes up a batch; one row for all, or one for each prompt."""
    return tensor.repeat_interleave(batch_size // len(tensor), 0)
