"""The typed configs of recipes that train on images alone: image tokenizers, and the classifier of a perceptual loss."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..utils.validation import check_count, check_number, check_share, is_number
from .configs import RunConfig, by_task, check_choice
from .discriminator_shape import DiscriminatorShape


#: The weight of each loss of an image tokenizer. A recipe may give some of them. See [`tokenizer_loss_weights`].
TOKENIZER_LOSS_WEIGHTS = {
    "l1": 1.0,
    "mse": 0.0,
    "log_cosh": 0.0,
    "perceptual": 1.0,
    "generator": 0.1,
    "feature_matching": 0.0,
    "lecam": 0.05,
    "token_cycle": 0.0,
}
#: Arguments of `TrainingArguments` that compile a model.
COMPILING = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
#: The losses that compare pixels.
PIXEL_LOSS_NAMES = ("l1", "mse", "log_cosh")
#: The weights at which the adaptive weight of a discriminator compares gradients.
LAST_LAYER = "decoder.conv_out.weight"


@dataclass(kw_only=True)
class ImageRunConfig(RunConfig):
    """
    What recipes that train on images alone have in common.

    Args:
        data (`str`, `dict` or `list`): a folder of images, or another source of images as a path or a mapping with the
            fields of [`~sources.DataSource`], or a list of sources.
        batch_size (`int`, defaults to 8): images in a step, on one device and without accumulation.
        mirror (`bool`, defaults to `True`): mirror half of the images.
        shift (`int`, defaults to 0): move each image by up to so many pixels in both directions. The border is white.
    """

    task: ClassVar[str] = "image"  # of the data

    data: Any = None
    batch_size: int = 8
    mirror: bool = True
    shift: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_count("batch_size", self.batch_size)
        check_count("shift", self.shift, least=0)
        if self.data is None:
            raise ValueError("`data` is missing: give the path of a folder of images.")
        self.data = by_task("data", self.data, self.task, (self.task,))
        if self.validation_data is not None:
            self.validation_data = by_task("validation_data", self.validation_data, self.task, (self.task,))
        if self.push_steps is not None:
            raise ValueError("`push_steps` has no effect here: the result is pushed at the end.")

    @property
    def rows_per_step(self) -> int:
        """Images in a step, on one device and without accumulation."""
        return self.batch_size


@dataclass
class DiscriminatorOptions(DiscriminatorShape):
    """
    A discriminator and how it is trained.

    Args:
        channels, max_channels, halvings, norm, blur: see [`DiscriminatorShape`].
        start (`int`, defaults to 0): the step from which on it learns and is asked.
        adaptive (`bool`, defaults to `False`): multiply the weight of the generator's loss by [`adaptive_weight`].
        learning_rate (`float`, *optional*): by default that of the tokenizer. It follows the same schedule.
        beta1, beta2 (`float`, default to 0.5 and 0.9): of its Adam.
        lecam_decay (`float`, defaults to 0.999): decay of the logits' running averages.
    """

    start: int = 0
    adaptive: bool = False
    learning_rate: float | None = None
    beta1: float = 0.5
    beta2: float = 0.9
    lecam_decay: float = 0.999

    def __post_init__(self):
        super().__post_init__()
        check_count("discriminator.start", self.start, least=0)
        if not isinstance(self.adaptive, bool):
            raise ValueError(f"`discriminator.adaptive` must be true or false, got {self.adaptive!r}.")
        if self.learning_rate is not None:
            self.learning_rate = as_number(self.learning_rate)
            check_number("discriminator.learning_rate", self.learning_rate)
        for name in ("beta1", "beta2", "lecam_decay"):
            check_share(f"discriminator.{name}", getattr(self, name))
            if getattr(self, name) == 1:
                raise ValueError(f"`discriminator.{name}` must be below 1, got 1.")


@dataclass(kw_only=True)
class SizedImageRunConfig(ImageRunConfig):
    """
    A training on images whose size may change in mid-run.

    Args:
        image_size (`int` or `dict`, *optional*): width and height of the images in pixels; or such sizes by the step from
            which on they are used, as `{0: 64, 5000: 128}`. The last one is the result's. By default the model's.
    """

    image_size: Any = None

    def __post_init__(self):
        super().__post_init__()
        self.image_size = size_schedule(self.image_size)

    @property
    def sizes(self) -> list[list[int]]:
        """Steps and the sizes from them on, in order; empty if the size is the model's."""
        if self.image_size is None or isinstance(self.image_size, list):
            return self.image_size or []
        return [[0, self.image_size]]

    @property
    def largest_size(self) -> int | None:
        """The largest width and height in the run, None for the model's."""
        return max((size for _, size in self.sizes), default=None)

    @property
    def smallest_size(self) -> int | None:
        """The smallest width and height in the run, None for the model's."""
        return min((size for _, size in self.sizes), default=None)

    @property
    def last_size(self) -> int | None:
        """The width and height of the result's images, None for the model's."""
        return self.sizes[-1][1] if self.sizes else None

    def check_multiples(self, factor: int, model_size: int):
        """Raise `ValueError` unless the sizes of the run, and the model's, are multiples of its downsampling."""
        for size in {model_size, *(size for _, size in self.sizes)}:
            if size % factor:
                raise ValueError(f"`image_size` must be a multiple of {factor}, got {size}.")

    def never_reached(self, steps: int) -> list[str]:
        """Same as in the base class, with sizes."""
        late = [f"image_size.{start}={size}" for start, size in self.sizes if start >= steps]
        return [*super().never_reached(steps), *late]

    def size_at(self, step: int) -> int | None:
        """The width and height of the images of the step after `step` steps, None for the model's."""
        return ([None] + [size for start, size in self.sizes if start <= step])[-1]


@dataclass(kw_only=True)
class ImageTokenizerConfig(SizedImageRunConfig):
    """
    Training of an image tokenizer: reconstruction of images through discrete tokens.

    Args:
        model (`str`, *optional*): an image tokenizer of the recipe's kind, as a folder or a name on the Hub, that the
            training starts from. Layers with other shapes start from random weights. Without it, all layers do.
        image_size: see [`SizedImageRunConfig`].
        commitment_weight (`float`, *optional*): weight of the commitment loss.
        architecture (`dict`): other entries of the tokenizer's config, such as `encoder_block_out_channels`. Whatever is
            not given is as in `model`, or else as in the published tokenizer.
        trained (`str`, *optional*): a regular expression; only parameters whose names match it are trained. "decoder"
            keeps the meaning of all tokens.
        loss_weights (`dict`): the weight of each loss: the pixel losses "l1", "mse" and "log_cosh"; "perceptual", of the
            model in `perceptual`; "generator" and "feature_matching", of the discriminator's judgement; "lecam", of the
            discriminator's regularisation; "token_cycle", of tokens that change when an image is encoded again. See
            `TOKENIZER_LOSS_WEIGHTS` for the defaults. Where there is a discriminator and no `perceptual`, the default of
            "feature_matching" is the weight "perceptual": the discriminator's features stand in for that model's.
        pixel_scales (`int`, defaults to 1): resolutions, each half the last, over which the pixel losses are averaged.
        perceptual (`str`, *optional*): a `.safetensors` file with the weights of LPIPS, or a folder with a classifier of
            images; see [`load_perceptual`].
        discriminator (`dict`, *optional*): the fields of [`DiscriminatorOptions`]. Without it there is none.
    """

    model: str | None = None
    commitment_weight: float | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    trained: str | None = None
    loss_weights: dict[str, float] = field(default_factory=dict)
    pixel_scales: int = 1
    perceptual: str | None = None
    discriminator: dict[str, Any] | None = None

    def __post_init__(self):
        super().__post_init__()
        check_count("pixel_scales", self.pixel_scales)
        for name, weight in self.loss_weights.items():
            check_choice("loss_weights", name, tuple(TOKENIZER_LOSS_WEIGHTS))
            check_number(f"loss_weights.{name}", as_number(weight))
        given = {name: as_number(weight) for name, weight in self.loss_weights.items()}
        self.loss_weights = tokenizer_loss_weights(given, self.perceptual is not None, self.discriminator is not None)
        if self.discriminator is not None:
            self.discriminator = dataclasses.asdict(self.discriminator_options)
        try:
            re.compile(self.trained or "")
        except re.error as error:
            raise ValueError(f"`trained` must be a regular expression, got {self.trained!r}: {error}.") from error
        options = self.discriminator_options
        compiled = [name for name in COMPILING if self.training.get(name)]
        if options is not None and options.adaptive and compiled:  # compiled graphs are gone after a backward pass
            raise ValueError(
                f"`discriminator.adaptive` takes further backward passes, so `{compiled[0]}` cannot be given."
            )
        if options is not None and options.adaptive and not re.search(self.trained or "", LAST_LAYER):
            raise ValueError(
                f"`discriminator.adaptive` needs the gradient at the decoder's last layer, {LAST_LAYER!r}, which must be "
                f"among the parameters that match `trained`, got {self.trained!r}."
            )
        compared = (*PIXEL_LOSS_NAMES, *(["perceptual"] if self.perceptual is not None else []))
        if options is not None and options.adaptive and not any(self.loss_weights[name] for name in compared):
            names = ", ".join(f"`loss_weights.{name}`" for name in PIXEL_LOSS_NAMES)
            raise ValueError(
                "`discriminator.adaptive` compares gradients with those of the reconstruction, which has no loss: one of "
                f"{names} must be above 0, or `perceptual` be given with a weight above 0."
            )
        for (_, size), (until, _) in itertools.pairwise([*self.sizes, [math.inf, 0]]):
            self.check_size(size, until)

    def check_size(self, size: int, until: float = math.inf):
        """
        Raise `ValueError` if images of `size` pixels, which the steps before `until` have, cannot be halved so often as the
        losses do.
        """
        halvings = size.bit_length() - 1
        if self.pixel_scales > halvings + 1:
            raise ValueError(
                f"`pixel_scales` must be at most {halvings + 1} for an `image_size` of {size}, got {self.pixel_scales}."
            )
        options = self.discriminator_options
        if options is not None and options.start < until and options.halvings > halvings:
            raise ValueError(
                f"`discriminator.halvings` must be at most {halvings} for an `image_size` of {size}, got {options.halvings}."
            )

    @property
    def discriminator_options(self) -> DiscriminatorOptions | None:
        """The options of the discriminator, or None without one."""
        if self.discriminator is None:
            return None
        known = tuple(one.name for one in dataclasses.fields(DiscriminatorOptions))
        for name in self.discriminator:
            check_choice("discriminator", name, known)
        return DiscriminatorOptions(**self.discriminator)

    def never_reached(self, steps: int) -> list[str]:
        """Same as in the base class, with the discriminator."""
        options, found = self.discriminator_options, super().never_reached(steps)
        late = options is not None and options.start >= steps
        return [*found, f"discriminator.start={options.start}"] if late else found

    def model_entries(self) -> dict[str, Any]:
        """The keys of the recipe that are entries of the tokenizer's config, None where it does not give them."""
        return {"sample_size": self.last_size, "commitment_weight": self.commitment_weight}


@dataclass(kw_only=True)
class LFQTrainingConfig(ImageTokenizerConfig):
    """
    Training of a [`ShowoLFQTokenizer`] (MAGVIT-v2, arXiv:2310.05737): a lookup-free quantizer.

    Args:
        codebook_bits (`int`, *optional*): bits of a token; the codebook has `2 ** codebook_bits` entries.
        entropy_weight (`float`, *optional*): weight of the entropy loss. A larger one uses more of the codebook.
        entropy_over (`str`, *optional*): "bits" or "codes".
    """

    codebook_bits: int | None = None
    entropy_weight: float | None = None
    entropy_over: str | None = None

    def model_entries(self) -> dict[str, Any]:
        own = ("codebook_bits", "entropy_weight", "entropy_over")
        return super().model_entries() | {name: getattr(self, name) for name in own}


@dataclass(kw_only=True)
class VQTrainingConfig(ImageTokenizerConfig):
    """
    Training of a [`ShowoVQTokenizer`] (VQGAN, arXiv:2012.09841): a codebook of vectors.

    Args:
        codebook_size (`int`, *optional*): number of codebook entries.
        codebook_dim (`int`, *optional*): channels of an entry.
        distance (`str`, *optional*): "euclidean" or "cosine".
        codebook_learning (`str`, *optional*): "ema" or "gradient".
    """

    codebook_size: int | None = None
    codebook_dim: int | None = None
    distance: str | None = None
    codebook_learning: str | None = None

    def model_entries(self) -> dict[str, Any]:
        own = ("codebook_size", "codebook_dim", "distance", "codebook_learning")
        return super().model_entries() | {name: getattr(self, name) for name in own}


@dataclass(kw_only=True)
class ImageClassifierConfig(ImageRunConfig):
    """
    Training of a small classifier of images, whose features make a perceptual loss.

    Args:
        model (`str`, *optional*): a classifier, as a folder or a name on the Hub, that the training starts from. Without
            it, all weights are random.
        data (`str`, `dict` or `list`): images with a text, which is the name of the class: one sub-folder for each class,
            or a folder with `metadata.jsonl`.
        image_size (`int`, defaults to 64): width and height of the images in pixels.
        architecture (`dict`): entries of transformers' `ConvNextConfig`.
        label_smoothing (`float`, defaults to 0.1): how much of each label is spread over all classes.
    """

    task: ClassVar[str] = "t2i"  # images with a text

    model: str | None = None
    image_size: int = 64
    architecture: dict[str, Any] = field(default_factory=dict)
    label_smoothing: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check_count("image_size", self.image_size)
        check_share("label_smoothing", self.label_smoothing)


def tokenizer_loss_weights(given: Mapping[str, float], perceptual: bool, discriminator: bool) -> dict[str, float]:
    """
    The weight of each loss of an image tokenizer.

    Args:
        given: the weights that a recipe gives.
        perceptual, discriminator: whether there is a model of a perceptual loss, and a discriminator. With a
            discriminator alone, its own features are compared in the place of that model's.

    Raises:
        ValueError: for a given weight that has no effect, because what it weighs is not there.
    """
    stands_in = discriminator and "feature_matching" not in given
    there = {"perceptual": perceptual or stands_in} | dict.fromkeys(
        ("generator", "feature_matching", "lecam"), discriminator
    )
    for name, has_effect in there.items():
        if given.get(name) and not has_effect:
            needed = "a `discriminator`"
            if name == "perceptual":
                needed = "`perceptual`, or a `discriminator` and no `loss_weights.feature_matching`"
            raise ValueError(f"`loss_weights.{name}` needs {needed}, got {given[name]!r} without.")
    weights = {**TOKENIZER_LOSS_WEIGHTS, **given}
    if discriminator and not perceptual and "feature_matching" not in given:
        weights["feature_matching"] = weights["perceptual"]
    return weights


def as_number(value: Any) -> Any:
    """YAML reads 1e-4 as a text."""
    try:
        return float(value) if isinstance(value, str) or is_number(value) else value
    except ValueError:
        return value


def size_schedule(sizes: Any) -> int | list[list[int]] | None:
    """
    A size, or pairs of a step and the size from it on, in order, as JSON holds them.

    Raises:
        ValueError: for sizes below 1, and where no size is given for the first step.
    """
    if sizes is None or not isinstance(sizes, dict):
        if sizes is not None:
            check_count("image_size", sizes)
        return sizes
    # A key of `image_size.5000=128` is a text.
    sizes = {int(step) if str(step).isdigit() else step: size for step, size in sizes.items()}
    for step, size in sizes.items():
        check_count("image_size (a step)", step, least=0)
        check_count(f"image_size.{step}", size)
    if 0 not in sizes:
        raise ValueError(f"`image_size` must have a size from step 0 on, got those from {sorted(sizes)}.")
    return [[step, sizes[step]] for step in sorted(sizes)]
