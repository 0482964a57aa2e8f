"""The base of the pipelines that edit an image: reading it, choosing the tokens to edit, and keeping its pixels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import logging
from PIL import Image

from showo_hf.processing.images import flatten_images, is_token_grid, load_image
from showo_hf.schedulers.masking_schedules import get_masking_schedule
from showo_hf.schedulers.scheduling_utils import Generators, sample_uniform
from showo_hf.utils.validation import check_choice, check_flag, check_share, shown

from .call_state import AFTER_PASS, SamplingParams
from .denoising import PromptContext, predict_logits
from .encoded_prompts import EncodedPrompts
from .masks import choose_masked, paste_original
from .prompts import RegionalPrompt
from .scheduler_adapter import config_entry
from .showo_pipeline import ShowoPipeline
from .windows import plan_windows


logger = logging.get_logger(__name__)


LIKELIHOOD_GROUPS = 4  # tokens are masked in this many groups, in turn, to score how likely each is
REMASKING = ("uncertain", "random")


@dataclass(frozen=True)
class SourceImages:
    """
    The images that an edit starts from.

    Args:
        tokens (`torch.LongTensor` of shape `(batch, h, w)`): image tokens.
        pixels (`torch.Tensor` of shape `(batch, 3, H, W)`, *optional*): pixels in [-1, 1]; None if tokens were given.
    """

    tokens: torch.LongTensor
    pixels: torch.Tensor | None


class ShowoEditingPipeline(ShowoPipeline):
    """Base of the pipelines that edit an image. See [`ShowoPipeline`] for the components."""

    # Checks

    def check_image(self, image: Any, num_prompts: int, height: int | None, width: int | None):
        """
        Check the kind and the number of images, without reading them.

        Raises:
            ValueError, TypeError: for something that is not an image, another number of images than one or one per
                prompt, token grids together with `height` or `width`, or grids of different sizes.
        """
        if is_token_image(image):
            grids = stack_grids(image)
            self.check_token_grids("image", grids, 1 if len(grids) == 1 else num_prompts, self.mask_token_id - 1)
            self.check_grid_size("image", tuple(grids.shape[1:]))
            if height is not None or width is not None:
                raise ValueError(
                    "`height` and `width` must be None for an `image` of tokens, which has its own size, "
                    f"got {shown(height)} and {shown(width)}."
                )
            return
        if self.image_tokenizer is None:
            raise ValueError(
                f"`image` must be a token grid for a model without an image tokenizer, got {type(image).__name__}."
            )
        self.check_size(height, width)
        images = flatten_images(image)
        if len(images) not in (1, num_prompts):
            raise ValueError(
                f"`image` must be one image or one for each of the {num_prompts} prompts, got {len(images)}."
            )

    def check_remasking(self, strength: float, remasking: str):
        """Raise `ValueError` for a strength outside [0, 1] or an unknown way of remasking."""
        check_share("strength", strength)
        check_choice("remasking", remasking, REMASKING)

    def check_preserve_pixels(self, preserve_pixels: bool, image: Any, output_type: str):
        """Raise `TypeError` for what is no bool, `ValueError` if there are no pixels to preserve."""
        check_flag("preserve_pixels", preserve_pixels)
        if preserve_pixels and output_type == "latent":
            raise ValueError(
                "`preserve_pixels` must be False for `output_type='latent'`, which has no pixels, got True."
            )
        if preserve_pixels and is_token_image(image):
            raise ValueError(
                "`preserve_pixels` must be False for an `image` of tokens, which has no pixels, got True."
            )

    # Reading images

    def load_images(self, image: Any, height: int | None, width: int | None) -> list[Image.Image] | torch.LongTensor:
        """
        Read the images as PIL images; return token grids as int64 (images, h, w).

        Raises:
            ValueError, TypeError: for an image that cannot be read, or images that would be edited at different sizes.
        """
        if is_token_image(image):
            return stack_grids(image)
        images = [load_image(one, "image", max_aspect=np.inf) for one in flatten_images(image)]
        sizes = {self.working_size((one.height, one.width), height, width) for one in images}
        if len(sizes) > 1:
            raise ValueError(
                "`image` must hold images of one aspect ratio unless `height` and `width` are given, "
                f"got sizes {sorted(sizes)}."
            )
        self.check_grid_size("image", next(iter(sizes)), self.patch)
        return images

    def working_size(self, size: tuple[int, int], height: int | None, width: int | None) -> tuple[int, int]:
        """
        Compute the size (height, width), in pixels, at which an image of another `size` is edited.

        By default the image keeps its aspect ratio, and its shorter side gets the trained length. Both sides are
        multiples of the patch size.
        """
        trained = [side * self.patch for side in self.default_grid]

        def whole_patches(length: float) -> int:
            return max(self.patch, round(length / self.patch) * self.patch)

        if height is not None or width is not None:
            return height or whole_patches(width * size[0] / size[1]), width or whole_patches(
                height * size[1] / size[0]
            )
        scale = max(trained[0] / size[0], trained[1] / size[1])
        return whole_patches(size[0] * scale), whole_patches(size[1] * scale)

    def grid_of(
        self, images: list[Image.Image] | torch.LongTensor, height: int | None, width: int | None
    ) -> tuple[int, int]:
        """Rows and columns of tokens at which loaded images are edited."""
        if isinstance(images, torch.Tensor):
            return images.shape[1], images.shape[2]
        size = self.working_size((images[0].height, images[0].width), height, width)
        return size[0] // self.patch, size[1] // self.patch

    def prepare_source(
        self,
        images: list[Image.Image] | torch.LongTensor,
        batch_size: int,
        height: int | None,
        width: int | None,
    ) -> SourceImages:
        """Resize and encode loaded images, and repeat each so that they make up the batch."""
        if isinstance(images, torch.Tensor):
            self.warn_if_small(tuple(images.shape[1:]))
            return SourceImages(repeat_to(images.to(self._execution_device), batch_size), None)
        size = self.working_size((images[0].height, images[0].width), height, width)
        self.warn_if_small((size[0] // self.patch, size[1] // self.patch))
        resizer = VaeImageProcessor(vae_scale_factor=self.patch, resample="bicubic")
        pixels = resizer.preprocess(images, *size).to(self._execution_device)
        tokens = self.model.encode_images(pixels)
        return SourceImages(repeat_to(tokens, batch_size), repeat_to(pixels, batch_size))

    # Choosing tokens

    def begin_index(self, num_inference_steps: int, strength: float) -> int:
        """Compute the first step to run: steps that would leave a larger share than `strength` masked are skipped."""
        if strength == 1:
            return 0
        masked_after = get_masking_schedule(config_entry(self.scheduler, "masking_schedule", "linear"))
        shares = masked_after(torch.arange(1, num_inference_steps + 1) / num_inference_steps)
        return next((step for step, share in enumerate(shares) if share < strength), num_inference_steps - 1)

    def choose_edited(
        self,
        tokens: torch.LongTensor,
        candidates: torch.BoolTensor,
        prompts: list[list[RegionalPrompt]],
        strength: float,
        remasking: str,
        num_images_per_prompt: int,
        generator: Generators,
    ) -> torch.BoolTensor:
        """
        Choose the share `strength` of the candidates (batch, h, w): the least likely tokens, or random ones.

        Args:
            tokens (`torch.LongTensor` of shape `(batch, h, w)`): tokens of the source images.
            prompts: regional prompts with loaded masks.
        """
        if strength == 1 or not bool(candidates.any()):
            return candidates
        if strength == 0:
            return torch.zeros_like(candidates)
        flat = candidates.flatten(1)
        if remasking == "random":
            order = sample_uniform(flat, generator)
        else:
            encoded = self.encode_prompt(
                prompt=prompts,
                num_images_per_prompt=num_images_per_prompt,
                do_classifier_free_guidance=False,
                grid_size=tuple(tokens.shape[1:]),
            )
            order = self.token_log_likelihoods(tokens, encoded, generator).flatten(1)
        return choose_masked(flat, strength, order).view_as(candidates)

    def token_log_likelihoods(
        self, tokens: torch.LongTensor, prompts: EncodedPrompts, generator: Generators
    ) -> torch.Tensor:
        """
        Compute log p of each token given the other tokens and the prompt, (batch, h, w).

        The model predicts masked tokens only. So a random quarter of the tokens is masked at a time: the
        pseudo-log-likelihood of "Masked language model scoring" (arXiv:1910.14659), in groups.
        """
        scores = torch.zeros(tokens.shape, device=tokens.device)
        ranks = sample_uniform(tokens.flatten(1), generator).argsort(-1).argsort(-1)
        group = ranks.view_as(tokens) % LIKELIHOOD_GROUPS
        everywhere = torch.ones_like(tokens[0], dtype=torch.bool)
        windows = list(plan_windows(everywhere, self.default_grid))
        for window in self.progress_bar(windows) if len(windows) > 1 else windows:  # many take longer than the steps
            given = tokens[:, *window]
            context = PromptContext.of(self.model, prompts.crop(*window), given[0].numel())
            for number in range(LIKELIHOOD_GROUPS):
                hidden = group[:, *window] == number
                masked = given.masked_fill(hidden, self.mask_token_id)
                logits = predict_logits(self.model, masked.flatten(1), context, guidance_scale=1.0)
                found = logits.float().log_softmax(-1).gather(-1, given.flatten(1).unsqueeze(-1)).squeeze(-1)
                scores[:, *window] = torch.where(hidden, found.view_as(given), scores[:, *window])
                AFTER_PASS.get()()
        return scores

    def prepare_latents(self, tokens: torch.LongTensor, edited: torch.BoolTensor) -> torch.LongTensor:
        """Mask the edited tokens, (batch, h, w). Warn if an image has none."""
        if not bool(edited.flatten(1).any(1).all()):
            logger.warning("No token is edited, so an image is returned unchanged.")
        return tokens.masked_fill(edited, self.mask_token_id)

    # Decoding

    @torch.no_grad()
    def decode_edited(
        self,
        latents: torch.LongTensor,
        source: SourceImages,
        edited: torch.BoolTensor,
        preserve_pixels: bool,
        output_type: str,
        params: SamplingParams,
    ):
        """
        Decode image tokens (batch, h, w) to images of `output_type`.

        The original pixels are kept with `preserve_pixels`, and in images without an edited token.
        """
        preserved = ~edited.flatten(1).any(1) | preserve_pixels  # (batch,)
        if output_type == "latent" or source.pixels is None or not bool(preserved.any()):
            return self.decode_latents(latents, output_type, params.generator, params.decoder_steps)
        pixels = self.decode_pixels(latents, params.generator, params.decoder_steps)
        pixels = torch.where(preserved[:, None, None, None], paste_original(pixels, source.pixels, edited), pixels)
        return self.image_processor.postprocess(pixels, output_type=output_type)


def is_token_image(image: Any) -> bool:
    """Whether the `image` of a call is given as image tokens: an int64 tensor, or a list of token grids (h, w)."""
    if isinstance(image, (list, tuple)):
        return bool(image) and all(map(is_token_grid, image))
    return isinstance(image, torch.Tensor) and image.dtype == torch.int64


def stack_grids(image: torch.LongTensor | list[torch.LongTensor]) -> torch.LongTensor:
    """Token grids (h, w), (images, h, w) or a list of them as (images, h, w). `ValueError` if they differ in size."""
    if isinstance(image, torch.Tensor):
        return image[None] if image.ndim == 2 else image
    if len({one.shape for one in image}) > 1:
        raise ValueError(f"`image` must hold token grids of one size, got {[tuple(one.shape) for one in image]}.")
    return torch.stack(tuple(image))


def repeat_to(tensor: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Repeat each row so that one row, or one row per prompt, makes up a batch."""
    return tensor.repeat_interleave(batch_size // len(tensor), 0)
