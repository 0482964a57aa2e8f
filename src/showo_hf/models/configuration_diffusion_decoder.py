"""Configuration of the diffusion decoder, and the schedulers that it takes."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..utils.decoder_choices import PREDICTION_TYPES, STARTS
from ..utils.saved_folders import CheckedConfig
from ..utils.validation import (
    MAX_COUNT,
    MAX_SCALE,
    check_count,
    check_flag,
    check_list,
    check_number,
    check_parameters,
    check_positive,
    shown,
)
from .configuration_image_tokenizer import LARGEST_TOKENIZER, MAX_IMAGE_PARAMETERS, MAX_STAGES


NOISE_LEVELS = 1000  # timesteps are in [0, 1000], as in diffusers' schedulers
#: The schedulers that a decoder takes, by name.
SCHEDULERS: dict[str, type[SchedulerMixin]] = {
    one.__name__: one
    for one in (DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler)
}
#: No decoder comes near these sizes.
LARGEST_DECODER = {
    "codebook_channels": 2**14,
    "downsampling": 2**12,
    "sample_size": 2**14,
    "in_channels": 1024,
    "patch_size": 2**10,
    "layers_per_block": 32,
    "norm_num_groups": 2**14,
    "num_inference_steps": MAX_COUNT,
}
#: Its schedulers make a table with an entry for each timestep, and a list as long as their order.
LARGEST_SCHEDULER = {"num_train_timesteps": 2**16, "solver_order": 3}
#: The settings that a scheduler's noise levels depend on.
NOISE_SETTINGS = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
)


class ShowoDiffusionDecoderConfig(CheckedConfig):
    r"""
    Configuration of a [`ShowoDiffusionDecoder`].

    The denoised variable is `z = (x - base) / residual_scale`, of pixels x. With `start="image"` the base is the image of
    the tokenizer's own decoder, so that the chain starts from that image with noise of the standard deviation
    `residual_scale`, and few steps are enough. With `start="noise"` the base is 0.

    Args:
        codebook_channels (`int`, defaults to 13): channels of the quantized latents.
        downsampling (`int`, defaults to 16): pixels per token along each axis.
        sample_size (`int`, defaults to 256): height and width of the training images in pixels.
        in_channels (`int`, defaults to 3): channels of an image.
        patch_size (`int`, defaults to 4): side, in pixels, of the patches that are the network's positions.
        block_out_channels (`list[int]`): channels of the network's stages, finest first.
        layers_per_block (`int`, defaults to 1): residual blocks in each stage on the way down. The way up has one more.
        mid_block_attention (`bool`, defaults to `True`): whether the coarsest resolution has self-attention.
        norm_num_groups (`int`, defaults to 16): groups of every group norm.
        start (`str`, defaults to `"image"`): "image" or "noise"; see above.
        residual_scale (`float`, defaults to 0.13): standard deviation of `x - base`, with pixels in [-1, 1].
        prediction_type (`str`, defaults to `"flow_prediction"`): what the network predicts: "epsilon" (the noise),
            "v_prediction" (arXiv:2202.00512) or "flow_prediction" (noise minus z).
        num_inference_steps (`int`, defaults to 4): steps that [`~ShowoDiffusionDecoder.decode`] takes by default.
        low_band_sigma (`float`, *optional*): the result takes its low frequencies from the first step's expectation of
            the image, and only the rest from the chain. This is the standard deviation in pixels of the Gaussian that
            separates them. None takes everything from the chain.
        scheduler (`dict`, *optional*): class and entries of the scheduler, which has the noise levels of the training;
            by default `FlowMatchEulerDiscreteScheduler`, or `DDIMScheduler` for "epsilon" and "v_prediction".

    Raises:
        TypeError: for a flag or a list of another type.
        ValueError: for other values that are not allowed, for sizes far beyond those of a decoder, and for a scheduler that
            does not fit `prediction_type`, or limits the denoised variable to less than it may be.
    """

    model_type = "showo_diffusion_decoder"

    def __init__(
        self,
        codebook_channels: int = 13,
        downsampling: int = 16,
        sample_size: int = 256,
        in_channels: int = 3,
        patch_size: int = 4,
        block_out_channels: Sequence[int] = (128, 256),
        layers_per_block: int = 1,
        mid_block_attention: bool = True,
        norm_num_groups: int = 16,
        start: str = "image",
        residual_scale: float = 0.13,
        prediction_type: str = "flow_prediction",
        num_inference_steps: int = 4,
        low_band_sigma: float | None = None,
        scheduler: dict[str, Any] | None = None,
        **kwargs,
    ):
        for name, size in (
            ("codebook_channels", codebook_channels),
            ("downsampling", downsampling),
            ("sample_size", sample_size),
            ("in_channels", in_channels),
            ("patch_size", patch_size),
            ("layers_per_block", layers_per_block),
            ("norm_num_groups", norm_num_groups),
            ("num_inference_steps", num_inference_steps),
        ):
            check_count(name, size, most=LARGEST_DECODER[name])
        check_architecture(block_out_channels, norm_num_groups, patch_size, downsampling, sample_size)
        check_flag("mid_block_attention", mid_block_attention)
        check_denoised(start, residual_scale, prediction_type)
        if low_band_sigma is not None:  # a wider Gaussian would leave nothing but the mean
            check_positive("low_band_sigma", low_band_sigma, most=sample_size)
        self.codebook_channels = codebook_channels
        self.downsampling = downsampling
        self.sample_size = sample_size
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.block_out_channels = list(block_out_channels)
        self.layers_per_block = layers_per_block
        self.mid_block_attention = mid_block_attention
        self.norm_num_groups = norm_num_groups
        self.start = start
        self.residual_scale = residual_scale
        self.prediction_type = prediction_type
        self.num_inference_steps = num_inference_steps
        self.low_band_sigma = low_band_sigma
        check_parameters(type(self).__name__, self.least_parameters(), MAX_IMAGE_PARAMETERS)
        self.scheduler = scheduler_entries(default_scheduler(prediction_type) if scheduler is None else scheduler)
        built = self.build_scheduler()
        check_decoder_scheduler(built, self)
        if prediction_type == "epsilon" and built.alphas_cumprod[-1] == 0:
            raise ValueError(
                "`scheduler` must leave some of the image in its last noise level for 'epsilon', which divides by it."
            )
        super().__init__(**kwargs)

    def least_parameters(self) -> int:
        """A number of parameters that the model does not fall below: two 3x3 kernels in each block, and the inputs."""
        kernels = sum(2 * 9 * self.layers_per_block * channels**2 for channels in self.block_out_channels)
        inputs = 9 * self.block_out_channels[0] * (2 * self.in_channels * self.patch_size**2 + self.codebook_channels)
        return kernels + inputs

    def build_scheduler(self) -> SchedulerMixin:
        """A scheduler of the config's class and entries. Its tables are on the CPU, also while a model is loaded."""
        with torch.device("cpu"):
            return scheduler_from_config(self.scheduler)


def check_architecture(
    block_out_channels: Sequence[int], norm_num_groups: int, patch_size: int, downsampling: int, sample_size: int
):
    """Raise `ValueError` or `TypeError` unless the sizes of the network fit each other and the tokens."""
    check_list("block_out_channels", block_out_channels)
    if not block_out_channels or len(block_out_channels) > MAX_STAGES:
        raise ValueError(
            f"`block_out_channels` must have from 1 to {MAX_STAGES} stages, got {len(block_out_channels):,}."
        )
    for channels in block_out_channels:
        check_count("block_out_channels", channels, most=LARGEST_TOKENIZER["decoder_block_out_channels"])
    if any(channels % norm_num_groups for channels in block_out_channels):
        raise ValueError(
            f"`block_out_channels` must be multiples of `norm_num_groups` ({norm_num_groups}), got {block_out_channels}."
        )
    coarsest = patch_size * 2 ** (len(block_out_channels) - 1)
    if downsampling % coarsest:
        raise ValueError(
            f"`downsampling` must be a multiple of {coarsest} pixels, the side of a position at the coarsest of the "
            f"{len(block_out_channels)} stages, got {downsampling}. A smaller `patch_size` than {patch_size}, or fewer "
            "stages, may fit."
        )
    if sample_size % downsampling:
        raise ValueError(f"`sample_size` must be a multiple of `downsampling` ({downsampling}), got {sample_size}.")


def check_denoised(start: str, residual_scale: float, prediction_type: str):
    """Raise `ValueError` unless the entries about the denoised variable are allowed."""
    for name, value, allowed in (
        ("start", start, STARTS),
        ("prediction_type", prediction_type, PREDICTION_TYPES),
    ):
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {shown(value)}.")
    check_positive("residual_scale", residual_scale, most=MAX_SCALE)


def default_scheduler(prediction_type: str) -> dict[str, Any]:
    """
    The scheduler's entries of a decoder that is given none.

    Sampling starts at the last noise level. There, an error of the noise is an error of z that is `1 / sqrt(a)` times as
    large, with a the product of `1 - beta`. This is 15 for Stable Diffusion's betas, which "epsilon" has, and 20,000 for the
    cosine schedule, which "v_prediction" has.
    """
    if prediction_type == "flow_prediction":
        return {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    betas: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2"}
    if prediction_type == "epsilon":
        betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return {
        "_class_name": "DDIMScheduler",
        "prediction_type": prediction_type,
        **betas,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }


def scheduler_entries(scheduler: dict[str, Any]) -> dict[str, Any]:
    """
    A copy of a scheduler's entries.

    Raises:
        ValueError: if they are no `dict`, or ask for tables far beyond those of a scheduler.
    """
    if not isinstance(scheduler, dict):
        raise ValueError(f"`scheduler` must be a dict, got {shown(scheduler)}.")
    for name, most in LARGEST_SCHEDULER.items():
        if name in scheduler:
            check_count(f"scheduler.{name}", scheduler[name], most=most)
    return dict(scheduler)


def scheduler_from_config(entries: dict[str, Any]) -> SchedulerMixin:
    """
    The scheduler of a decoder's config.

    Raises:
        ValueError: for a class that is not one of `SCHEDULERS`.
    """
    name = entries.get("_class_name")
    if name not in SCHEDULERS:
        raise ValueError(f"`scheduler._class_name` must be one of {', '.join(SCHEDULERS)}, got {shown(name)}.")
    return SCHEDULERS[name].from_config(entries)


def scheduler_to_config(scheduler: SchedulerMixin) -> dict[str, Any]:
    """The class and the entries of a scheduler, as JSON holds them. Entries that diffusers keeps for itself are left out."""
    entries = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return {"_class_name": type(scheduler).__name__, **entries}


def check_decoder_scheduler(scheduler: SchedulerMixin, config: ShowoDiffusionDecoderConfig):
    """Raise `ValueError` unless a scheduler takes what the network predicts, and keeps the denoised variable as it is."""
    name = type(scheduler).__name__
    if name not in SCHEDULERS:
        raise ValueError(f"`scheduler` must be one of {', '.join(SCHEDULERS)}, got {name}.")
    is_flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    taken = "flow_prediction" if is_flow else scheduler.config.prediction_type
    if taken != config.prediction_type:
        raise ValueError(
            f"`scheduler` must take what the decoder predicts, {config.prediction_type!r}, but this one takes {taken!r}."
        )
    settings = inspect.signature(type(scheduler)).parameters
    for setting, (value, reason) in needed_settings(scheduler, config).items():
        found = scheduler.config[setting] if setting in settings else value
        if found != value:
            raise ValueError(
                f"`scheduler` must have `{setting}={value}`, {reason}, got {shown(found)}. Make it with "
                f"`{name}.from_config(decoder.scheduler.config, {setting}={value})`."
            )


def needed_settings(scheduler: SchedulerMixin, config: ShowoDiffusionDecoderConfig) -> dict[str, tuple[Any, str]]:
    """The settings that a scheduler must have if its class has them, and the reasons."""
    is_flow = config.prediction_type == "flow_prediction"
    needed: dict[str, tuple[Any, str]] = {
        "use_flow_sigmas": (is_flow, f"as the decoder predicts {config.prediction_type!r}"),
        "use_dynamic_shifting": (False, "as the decoder's noise levels do not depend on the image's size"),
        "invert_sigmas": (False, "as the decoder's chain starts from noise"),
    }
    if is_flow:
        needed["num_train_timesteps"] = (NOISE_LEVELS, "which is the decoder's timestep of pure noise")
    largest = (2 if config.start == "image" else 1) / config.residual_scale  # of x - base, with both in [-1, 1]
    clip_range = scheduler.config.get("clip_sample_range", 1.0)
    check_number("scheduler.clip_sample_range", clip_range)
    for setting, limit in (("clip_sample", clip_range), ("thresholding", 1.0)):
        if limit < largest:
            reason = f"as it limits the denoised variable to {limit:g}, which may be as far as {largest:.3g} from 0"
            needed[setting] = (False, reason)
    return needed


def check_noise_levels(scheduler: SchedulerMixin, trained: SchedulerMixin):
    """Raise `ValueError` unless the timesteps of a scheduler have the noise levels of the scheduler of the training."""
    found, expected = scheduler.alphas_cumprod, trained.alphas_cumprod
    if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-6):
        return
    pairs = {setting: (scheduler.config.get(setting), trained.config.get(setting)) for setting in NOISE_SETTINGS}
    differing = [
        f"`{setting}` is {shown(ours)} and in training {shown(theirs)}"
        for setting, (ours, theirs) in pairs.items()
        if repr(ours) != repr(theirs)
    ]
    raise ValueError(
        f"`scheduler` must have the noise levels of the training, but its {', '.join(differing) or 'betas differ'}. "
        f"Make it with `{type(scheduler).__name__}.from_config(decoder.scheduler.config)`."
    )
