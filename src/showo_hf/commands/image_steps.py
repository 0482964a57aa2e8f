"""The images after each step, for `--save-steps`: recorded, decoded, and written side by side or as an animation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

    from ..models.image_tokenizer import ShowoImageTokenizer


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

    Args:
        tokenizer: the image tokenizer that decoded `finished`.
        steps: the tokens after each step, (batch, h, w) int64; masked tokens are the codebook size or larger.
        finished: the finished images of the batch.

    Returns:
        for each image of the batch, one image per step; the last one is the finished image itself.
    """
    import torch
    from diffusers.image_processor import VaeImageProcessor

    if not steps:  # no token was masked
        return [[image] for image in finished]
    codebook_size, factor = tokenizer.config.codebook_size, tokenizer.config.downsampling
    # The decoder needs a token in every cell, and neighbouring cells see it. With the final token in the masked cells,
    # the known cells already look as they do in the finished image.
    final = steps[-1].clamp(max=codebook_size - 1)
    frames_by_image: list[list[Image.Image]] = [[] for _ in finished]
    for tokens in steps[:-1]:
        masked = tokens >= codebook_size  # (batch, h, w)
        completed = torch.where(masked, final, tokens)
        with torch.inference_mode():
            pixels = tokenizer.decode(completed.to(tokenizer.device)).sample.float()  # (batch, 3, H, W) in [-1, 1]
        hidden = masked[:, None].repeat_interleave(factor, 2).repeat_interleave(factor, 3).to(pixels.device)
        frames = VaeImageProcessor().postprocess(pixels.masked_fill(hidden, 0.0))  # 0 is mid-grey
        for frames_of_image, frame in zip(frames_by_image, frames, strict=True):
            frames_of_image.append(frame)
    return [[*frames, image] for frames, image in zip(frames_by_image, finished, strict=True)]


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
