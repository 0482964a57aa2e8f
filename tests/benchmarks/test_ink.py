"""Drawings in ink by program, and the judge of styles."""

import numpy as np
import torch
from benchmarks.ink import INKS, draw_ink, train_judge
from PIL import Image, ImageDraw


def disc(colour: str, size: int = 64) -> torch.Tensor:
    """A disc on white, (1, 3, size, size)."""
    image = Image.new("RGB", (size, size), "white")
    ImageDraw.Draw(image).ellipse((size // 4, size // 4, 3 * size // 4, 3 * size // 4), fill=colour)
    return torch.from_numpy(np.array(image)).movedim(-1, 0)[None].float() / 127.5 - 1


def as_rgb(pixels: torch.Tensor) -> tuple[int, ...]:
    return tuple(((pixels + 1) * 127.5).round().int().tolist())


def test_ink_is_blue_on_white_paper_with_dark_outlines():
    drawn = draw_ink(disc("yellow"))
    assert drawn.shape == (1, 3, 64, 64)
    assert as_rgb(drawn[0, :, 0, 0]) == as_rgb(drawn[0, :, 63, 40]) == (255, 255, 255) == INKS[-1]
    outline, inside = drawn[0, :, 32, 16], drawn[0, :, 32, 32]
    assert outline.mean() < inside.mean() < 1
    for one in (outline, inside):
        assert one[0] < one[1] < one[2]  # blue
    assert as_rgb(draw_ink(disc("black"))[0, :, 32, 32]) == INKS[0]


def test_a_mirrored_picture_gives_the_mirrored_drawing():
    picture = torch.cat([disc("red")[..., 5:], disc("blue")[..., :5]], -1)
    assert torch.allclose(draw_ink(picture.flip(-1)).flip(-1), draw_ink(picture), atol=1e-4)


def test_the_judge_tells_styles_it_was_trained_on():
    generator = torch.Generator().manual_seed(0)
    noisy = [disc(colour) + 0.1 * torch.randn(40, 3, 64, 64, generator=generator) for colour in ("red", "blue")]
    drawings = [draw_ink(one) for one in noisy]
    state = torch.get_rng_state()
    judge = train_judge(torch.cat([one[:20] for one in (*noisy, *drawings)]), ["flat"] * 40 + ["ink"] * 40, epochs=5)
    assert torch.equal(torch.get_rng_state(), state)
    unseen = judge.judge(torch.cat([one[20:] for one in (*noisy, *drawings)]))
    assert unseen == ["flat"] * 40 + ["ink"] * 40
