"""A new style for the things of the world: blue ink, drawn by program from the flat pictures. And a judge of styles."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from showo_hf.models.image_tokenizer import ShowoImageTokenizer


#: RGB of the ink from the darkest parts of a picture to white paper.
INKS = ((20, 40, 110), (60, 110, 190), (160, 200, 240), (255, 255, 255))
BRIGHTNESS = (0.3, 0.59, 0.11)  # of red, green and blue
JUDGED_SIZE = 48  # image size for the judge, in pixels


def blur(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur images (N, C, H, W) with a Gaussian."""
    radius = int(3 * sigma)
    bell = torch.exp(-(torch.arange(-radius, radius + 1.0) / sigma).square() / 2)
    bell = (bell / bell.sum()).expand(pixels.shape[1], 1, -1)
    padded = F.pad(pixels, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, bell[..., None], groups=pixels.shape[1])
    return F.conv2d(rows, bell[..., None, :], groups=pixels.shape[1])


def draw_ink(pixels: torch.Tensor) -> torch.Tensor:
    """
    Draw pictures in blue ink: shades of blue instead of all colours, and dark outlines.

    Args:
        pixels (`torch.Tensor` of shape `(N, 3, H, W)`): pictures on white, in [-1, 1].

    Returns:
        `torch.Tensor` of the same shape, in [-1, 1].
    """
    soft = blur(pixels, 1.0)
    across = F.pad(soft[..., 2:] - soft[..., :-2], (1, 1, 0, 0))
    down = F.pad(soft[..., 2:, :] - soft[..., :-2, :], (0, 0, 1, 1))
    outline = (1.6 * (across.square() + down.square()).sum(1, keepdim=True).sqrt() - 0.1).clamp(0, 1)
    brightness = ((pixels * torch.tensor(BRIGHTNESS).view(1, 3, 1, 1)).sum(1, keepdim=True) + 1) / 2
    inks = [torch.tensor(ink).view(1, 3, 1, 1) / 127.5 - 1 for ink in INKS]
    drawn = inks[0]
    for number, ink in enumerate(inks[1:]):
        drawn = torch.lerp(drawn, ink, (brightness * (len(inks) - 1) - number).clamp(0, 1))
    return torch.lerp(drawn, inks[0], 0.9 * outline).clamp(-1, 1)


@torch.no_grad()
def through(tokenizer: ShowoImageTokenizer, pixels: torch.Tensor, batch_size: int = 32) -> torch.Tensor:
    """Images (N, 3, H, W) as the image tokenizer gives them back, in [-1, 1]."""
    return torch.cat([tokenizer(chunk).sample.clamp(-1, 1) for chunk in pixels.split(batch_size)])


class StyleJudge(nn.Module):
    """A small convolutional network that tells the style of an image."""

    def __init__(self, styles: Sequence[str], width: int = 32):
        super().__init__()
        self.styles = tuple(styles)
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        # The mean and the maximum over all places, so that it matters what is drawn how, not where.
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(8 * width, len(styles))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (N, styles) of images (N, 3, H, W) in [-1, 1]."""
        found = self.features(F.adaptive_avg_pool2d(pixels, JUDGED_SIZE)).flatten(2)
        return self.head(torch.cat([found.mean(-1), found.amax(-1)], -1))

    @torch.no_grad()
    def judge(self, pixels: torch.Tensor) -> list[str]:
        """The style of each image."""
        self.eval()
        return [self.styles[number] for number in self(pixels).argmax(-1).tolist()]


def train_judge(pixels: torch.Tensor, styles: Sequence[str], epochs: int = 15, seed: int = 0) -> StyleJudge:
    """
    Train a judge on images (N, 3, H, W) in [-1, 1] and their styles. Half of the images are mirrored, anew each time.

    torch's own random state is unchanged.
    """
    names = sorted(set(styles))
    labels = torch.tensor([names.index(style) for style in styles])
    small = F.adaptive_avg_pool2d(pixels, JUDGED_SIZE)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = StyleJudge(names).train()
    steps = epochs * -(-len(small) // 64)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(small), generator=generator).split(64):
            mirrored = torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.5
            shown = torch.where(mirrored, small[rows].flip(-1), small[rows])
            optimizer.zero_grad()
            F.cross_entropy(judge(shown), labels[rows], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    return judge.eval()
