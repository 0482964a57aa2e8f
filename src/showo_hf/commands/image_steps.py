"""The images after each step, for `--save-steps`: recorded, decoded, and written side by side or as an animation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

    from ..models.image_tokenizer import ShowoImageTokenizer


MID_GREY = 128
STRIP_GAP = 2  # white pixels between the images of a strip
FRAME_MILLISECONDS, LAST_FRAME_MILLISECONDS = 200, 2000


class StepRecorder:
    """A `callback_on_step_end` that keeps the tokens after every step, (batch, h, w) int64."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, pipe: DiffusionPipeline, step: int, timestep: Any, callback_kwargs: dict) -> dict:
        self.steps.append(callback_kwargs["latents"].clone())
        return callback_kwargs


def step_images(
    tokenizer: ShowoImageTokenizer, steps: list[torch.Tensor], finished: list[Image.Image]
) -> list[list[Image.Image]]:
    """
    The images after every step, mid-grey where tokens are masked.

    A step whose tokens all stay shows the pixels of the finished image, whatever made them.

    Args:
        tokenizer: the image tokenizer of the tokens.
        steps: the tokens after each step, (batch, h, w) int64; masked tokens are the codebook size or larger.
        finished: the finished images of the batch.

    Returns:
        for each image of the batch, one image per step; the last one is the finished image itself.
    """
    import numpy as np
    from PIL import Image

    if not steps:  # no token was masked
        return [[image] for image in finished]
    codebook_size, factor = tokenizer.config.codebook_size, tokenizer.config.downsampling
    # A decoder needs a token in every cell, and neighbouring cells see it. So masked cells have their final tokens.
    final = steps[-1].clamp(max=codebook_size - 1)
    frames_by_image: list[list[Image.Image]] = [[] for _ in finished]
    for tokens in steps[:-1]:
        for number, (frames, image) in enumerate(zip(frames_by_image, finished, strict=True)):
            masked = tokens[number] >= codebook_size  # (h, w)
            completed = final[number].where(masked, tokens[number])
            changes_later = not completed.equal(final[number])  # some schedulers mask tokens again
            shown = decoded(tokenizer, completed) if changes_later else image.convert("RGB")
            hidden = masked.repeat_interleave(factor, 0).repeat_interleave(factor, 1).cpu().numpy()
            frames.append(Image.fromarray(np.where(hidden[..., None], np.uint8(MID_GREY), np.asarray(shown))))
    return [[*frames, image] for frames, image in zip(frames_by_image, finished, strict=True)]


def decoded(tokenizer: ShowoImageTokenizer, tokens: torch.Tensor) -> Image.Image:
    """The image of tokens (h, w), from the image tokenizer alone: a diffusion decoder would take its time in each step."""
    import torch
    from diffusers.image_processor import VaeImageProcessor

    with torch.inference_mode():
        pixels = tokenizer.decode(tokens[None].to(tokenizer.device)).sample.float()  # (1, 3, H, W) in [-1, 1]
    return VaeImageProcessor().postprocess(pixels)[0]


def save_steps(frames: list[Image.Image], path: Path) -> None:
    """Write the images of all steps: .gif as an animation that pauses on the last frame, else side by side."""
    from PIL import Image

    if path.suffix.lower() == ".gif":
        durations = [FRAME_MILLISECONDS] * (len(frames) - 1) + [LAST_FRAME_MILLISECONDS]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
        return
    width, height = frames[0].size
    strip = Image.new("RGB", ((width + STRIP_GAP) * len(frames) - STRIP_GAP, height), "white")
    for index, frame in enumerate(frames):
        strip.paste(frame, (index * (width + STRIP_GAP), 0))
    strip.save(path)
