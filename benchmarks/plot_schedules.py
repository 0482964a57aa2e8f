"""The masking schedules as curves: docs/images/schedules.png. Run as

python benchmarks/plot_schedules.py --output docs/images/schedules.png
"""

import argparse

import torch
from PIL import Image, ImageDraw, ImageFont

from showo_hf.schedulers.masking_schedules import get_masking_schedule


#: The schedules that have names, and two of the powers, with their colours.
CURVES = {
    "arccos": "#d62728",
    "cosine": "#1f77b4",
    "linear": "#7f7f7f",
    "sigmoid": "#2ca02c",
    "pow2": "#8c564b",
    "pow0.5": "#9467bd",
}
SIZE = (720, 440)
LEFT, TOP, RIGHT, BOTTOM = 70, 24, 560, 380  # of the frame, in pixels
FINER = 4  # drawn so many times larger and shrunk, for smooth lines
POINTS = 401


class Canvas:
    """A picture that is drawn `FINER` times as large; all lengths are those of the finished one."""

    def __init__(self, size: tuple[int, int]):
        self.size = size
        self.image = Image.new("RGB", (size[0] * FINER, size[1] * FINER), "white")
        self.draw = ImageDraw.Draw(self.image)

    def line(self, points: list[tuple[float, float]], color: str, width: float = 1.0):
        scaled = [(x * FINER, y * FINER) for x, y in points]
        self.draw.line(scaled, fill=color, width=round(width * FINER), joint="curve")

    def text(self, at: tuple[float, float], text: str, anchor: str, color: str = "#222222", height: int = 14):
        font = ImageFont.load_default(height * FINER)
        self.draw.text((at[0] * FINER, at[1] * FINER), text, fill=color, font=font, anchor=anchor)

    def finished(self) -> Image.Image:
        shrunk = self.image.resize(self.size, Image.Resampling.LANCZOS)
        return shrunk.quantize(64, dither=Image.Dither.NONE)  # few colours: a small file


def place(done: float, unknown: float) -> tuple[float, float]:
    """Where a point of the plot lies, from the share of the steps and that of the tokens."""
    return LEFT + done * (RIGHT - LEFT), BOTTOM - unknown * (BOTTOM - TOP)


def plot() -> Image.Image:
    """The picture."""
    canvas = Canvas(SIZE)
    for i in range(5):
        share = i / 4
        canvas.line([place(0, share), place(1, share)], "#e4e4e4")
        canvas.line([place(share, 0), place(share, 1)], "#e4e4e4")
        x, y = place(share, share)
        canvas.text((x, BOTTOM + 8), f"{share:g}", "mt")
        canvas.text((LEFT - 8, y), f"{share:g}", "rm")
    canvas.line([place(0, 1), place(0, 0), place(1, 0)], "#222222", 1.5)
    canvas.text(((LEFT + RIGHT) / 2, BOTTOM + 34), "share of the steps that are done", "mt")
    canvas.text((LEFT, TOP - 8), "share of the tokens that are unknown", "lb")
    done = torch.linspace(0, 1, POINTS)
    for i, (name, color) in enumerate(CURVES.items()):
        unknown = get_masking_schedule(name)(done)
        canvas.line([place(*point) for point in zip(done.tolist(), unknown.tolist(), strict=True)], color, 2)
        y = TOP + 24 + 26 * i
        canvas.line([(RIGHT + 24, y), (RIGHT + 52, y)], color, 3)
        canvas.text((RIGHT + 62, y), name, "lm")
    return canvas.finished()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True)
    plot().save(parser.parse_args().output, optimize=True)


if __name__ == "__main__":
    main()
