"""
Perceptual losses: images are compared by the features of a frozen network, not by their pixels.

There are two. [`LPIPS`] is the published one, for whoever has its weights. [`ClassifierFeatures`] takes any classifier
of transformers that gives maps of features, such as one of the recipe `image-classifier`.
"""

from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForImageClassification


#: VGG16's convolutions (arXiv:1409.1556, table 1, D) up to the last that LPIPS looks at; "pool" halves the size.
VGG16_LAYERS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
#: LPIPS looks at the output of the last convolution before each halving.
LPIPS_CHANNELS = (64, 128, 256, 512, 512)
TRIED_SIZE = 64  # pixels of the image that a network is tried on, unless the training has smaller ones


def difference_of_features(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """
    The squared difference of features (batch, channels, h, w), each position normalized to length 1 (LPIPS,
    arXiv:1801.03924, eq. 1). As the features.
    """
    return (unit(one) - unit(other)).square()


def unit(features: torch.Tensor) -> torch.Tensor:
    """Features (batch, channels, h, w) of length 1 over the channels, in float32."""
    features = features.float()
    # The gradient of this norm is 0 where all channels are. A square root's is not a number.
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def vgg16_layers() -> nn.Sequential:
    """VGG16's layers, at the places that they have in its published weights: convolution, ReLU, pooling."""
    layers: list[nn.Module] = []
    channels = 3
    for width in VGG16_LAYERS:
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, int(width), 3, padding=1), nn.ReLU()]
            channels = int(width)
    return nn.Sequential(*layers)


class LPIPS(nn.Module):
    """
    The learned perceptual distance of images (LPIPS with VGG16, version 0.1, arXiv:1801.03924).

    `forward(one, other)` takes images (batch, 3, H, W) in [-1, 1] of at least 16 pixels, and returns the mean distance of
    the batch, of shape `()`.
    """

    def __init__(self):
        super().__init__()
        self.features = vgg16_layers()
        # Named as in the published file of heads. Their first layer there is a dropout, which does nothing here.
        for number, channels in enumerate(LPIPS_CHANNELS):
            head = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))
            self.add_module(f"lin{number}", nn.ModuleDict({"model": head}))
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def from_file(cls, file: str | Path) -> "LPIPS":
        """
        Load the weights of a `.safetensors` file.

        It holds `features.N.weight` and `features.N.bias` for N = 0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, as
        torchvision's `vgg16`; and `lin0.model.1.weight` to `lin4.model.1.weight`, of the shape (1, channels, 1, 1) and not
        negative, as in the file `vgg.pth` of LPIPS 0.1. Other tensors, such as those of VGG16's classifier, are ignored.

        Raises:
            ValueError: if the file cannot be read, a tensor is missing or has another shape, or a head is negative.
        """
        model = cls()
        wanted = model.state_dict()
        try:
            with safe_open(file, "pt") as saved:
                names = set(saved.keys())
                values = {name: saved.get_tensor(name).float() for name in wanted if name in names}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"`perceptual` must be a .safetensors file, '{file}' cannot be read: {error}") from error
        missing = sorted(set(wanted) - set(values))
        if missing:
            raise ValueError(
                f"`perceptual` must hold the weights of LPIPS; '{file}' lacks {len(missing)} tensors, such as "
                f"'{missing[0]}'."
            )
        for name, value in values.items():
            if value.shape != wanted[name].shape:
                shapes = f"{tuple(wanted[name].shape)}, got {tuple(value.shape)}"
                raise ValueError(f"`perceptual`: '{name}' in '{file}' must have the shape {shapes}.")
            if not bool(torch.isfinite(value).all()) or (name.startswith("lin") and bool((value < 0).any())):
                raise ValueError(f"`perceptual`: '{name}' in '{file}' holds numbers that LPIPS never has.")
        model.load_state_dict(values)
        return model.eval().requires_grad_(False)

    def maps(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """The five maps of features, full size first, of images in [-1, 1]."""
        found = []
        features = (pixels - self.mean) / self.deviation
        for layer, after in pairwise([*self.features, nn.MaxPool2d(2)]):
            features = layer(features)
            if isinstance(after, nn.MaxPool2d):
                found.append(features)
        return found

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        total = one.new_zeros(len(one), dtype=torch.float32)
        with torch.no_grad():
            expected = self.maps(other)
        for number, (own, map_) in enumerate(zip(self.maps(one), expected, strict=True)):
            head = getattr(self, f"lin{number}")["model"][1].weight
            total = total + (difference_of_features(own, map_) * head).sum(1).mean((1, 2))
        return total.mean()


class ClassifierFeatures(nn.Module):
    """
    The difference of a classifier's features: [`difference_of_features`], summed over the channels and averaged over
    positions and maps.

    `forward(one, other)` takes images (batch, 3, H, W) in [-1, 1] and returns the mean of the batch, of shape `()`.

    Args:
        classifier: a model of transformers for images, whose `hidden_states` are maps (batch, channels, h, w), as those
            of ConvNeXt and ResNet are.
    """

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier.eval().requires_grad_(False)

    def maps(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """The maps of features, full size first."""
        return list(self.classifier.base_model(pixels, output_hidden_states=True).hidden_states)

    def train(self, mode: bool = True):
        """Frozen: it stays in evaluation mode."""
        return super().train(False)

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            expected = self.maps(other)
        distances = [
            difference_of_features(own, map_).sum(1).mean() for own, map_ in zip(self.maps(one), expected, strict=True)
        ]
        return torch.stack(distances).mean()


def load_perceptual(path: str, smallest: int | None = None) -> nn.Module:
    """
    The perceptual loss of a `.safetensors` file, [`LPIPS`], or of a classifier's folder, [`ClassifierFeatures`].

    A classifier sees pixels in [-1, 1] at the size of the training.

    Args:
        path: the file or folder.
        smallest: the smallest width and height of the training's images in pixels, if it is known.

    Raises:
        ValueError: if it is neither, or does not fit, or if the images are too small for it.
    """
    loss: LPIPS | ClassifierFeatures = (
        LPIPS.from_file(path) if path.endswith(".safetensors") else classifier_features(path)
    )
    try:
        with torch.no_grad():
            maps = loss.maps(torch.zeros(1, 3, *2 * [min(smallest or TRIED_SIZE, TRIED_SIZE)]))
    except RuntimeError as error:
        raise ValueError(
            f"`image_size` must be larger for the network of `perceptual`, got {smallest}: {error}"
        ) from error
    if not maps or any(one.ndim != 4 for one in maps):
        raise ValueError(f"`perceptual` must be a classifier with maps of features, '{path}' has none.")
    return loss


def classifier_features(path: str) -> ClassifierFeatures:
    """The perceptual loss of a classifier's folder; see [`load_perceptual`]."""
    try:
        classifier = AutoModelForImageClassification.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, local_files_only=Path(path).exists()
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`perceptual` must be a .safetensors file with the weights of LPIPS, or the folder of a classifier of images, "
            f"got '{path}': {error}"
        ) from error
    return ClassifierFeatures(classifier)
