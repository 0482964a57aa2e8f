"""A decoder that makes pixels from image tokens by continuous diffusion.

The network and the schedulers are diffusers' own. The denoised variable is a picture, or what the image tokenizer's own
decoder is short of it.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..utils.saved_folders import CheckedWeights
from ..utils.tensor_checks import check_generators, check_tensor
from ..utils.validation import MAX_COUNT, check_callable, check_count, check_number, is_integer, shown
from .configuration_diffusion_decoder import (
    NOISE_LEVELS,
    ShowoDiffusionDecoderConfig,
    check_decoder_scheduler,
    check_noise_levels,
    scheduler_to_config,
)
from .image_tokenizer import ShowoImageTokenizer
from .tiling import decode_tiled


@dataclass
class ShowoDiffusionDecoderOutput(ModelOutput):
    """
    Output of [`ShowoDiffusionDecoder.decode`].

    Args:
        sample (`torch.Tensor` of shape `(batch, 3, H, W)`): pixels in [-1, 1].
    """

    sample: torch.Tensor | None = None


class ShowoDiffusionDecoder(CheckedWeights, PreTrainedModel):
    r"""
    Makes pixels from the codes of an image tokenizer by continuous diffusion (DDPM, arXiv:2006.11239; flow matching,
    arXiv:2210.02747).

    The network is diffusers' `UNet2DModel`. It sees the noised variable, the image of the tokenizer's own decoder and the
    codes, as channels of patches. `scheduler` is the scheduler of [`decode`]; each call copies it.

    Example:

    ```python
    >>> decoder = ShowoDiffusionDecoder.from_pretrained(folder)
    >>> codes = tokenizer.codes_of(image_tokens)                    # (batch, channels, h, w)
    >>> image = tokenizer.decode(image_tokens).sample               # (batch, 3, H, W) in [-1, 1]
    >>> pixels = decoder.decode(codes, image).sample                # (batch, 3, H, W) in [-1, 1]
    ```
    """

    config_class = ShowoDiffusionDecoderConfig
    config: ShowoDiffusionDecoderConfig
    base_model_prefix = ""
    main_input_name = "sample"
    supports_gradient_checkpointing = True
    input_modalities = ("image",)
    # Its attention comes from diffusers. The attention implementation of a whole pipeline does not change it.
    _supports_sdpa = True
    _supports_flex_attn = True
    _no_split_modules = ["ResnetBlock2D", "UNetMidBlock2D"]
    _init_weights = ShowoImageTokenizer._init_weights

    def __init__(self, config: ShowoDiffusionDecoderConfig):
        super().__init__(config)
        self.tile_size: int | None = None
        self.scheduler: SchedulerMixin = config.build_scheduler()
        self.check_steps("num_inference_steps", config.num_inference_steps)
        pixels_in_patch = config.in_channels * config.patch_size**2
        stages = len(config.block_out_channels)
        self.unet = UNet2DModel(
            sample_size=config.sample_size // config.patch_size,
            in_channels=2 * pixels_in_patch + config.codebook_channels,
            out_channels=pixels_in_patch,
            block_out_channels=tuple(config.block_out_channels),
            layers_per_block=config.layers_per_block,
            down_block_types=("DownBlock2D",) * stages,
            up_block_types=("UpBlock2D",) * stages,
            add_attention=config.mid_block_attention,
            attention_head_dim=config.norm_num_groups,
            norm_num_groups=config.norm_num_groups,
        )
        self.post_init()

    def set_scheduler(self, scheduler: SchedulerMixin):
        """
        Use another of diffusers' schedulers. It is saved with the decoder.

        Example:

        ```python
        >>> decoder.set_scheduler(DPMSolverMultistepScheduler.from_config(decoder.scheduler.config))
        ```

        Args:
            scheduler (`SchedulerMixin`): made with `from_config`, so that it has the noise levels of the training. For a
                decoder of flows, `DPMSolverMultistepScheduler` also needs `prediction_type="flow_prediction"` and
                `use_flow_sigmas=True`.

        Raises:
            ValueError: if it does not take what the network predicts or the config's number of steps, has other noise
                levels than the training, or limits the denoised variable to less than it may be.
        """
        check_decoder_scheduler(scheduler, self.config)
        if self.config.prediction_type != "flow_prediction":
            check_noise_levels(scheduler, self.scheduler)
        check_count("num_inference_steps", self.config.num_inference_steps, least=0, most=most_steps(scheduler))
        self.scheduler, self.config.scheduler = scheduler, scheduler_to_config(scheduler)

    # Tiles

    def enable_tiling(self, tile_size: int | None = None):
        """
        Decode images larger than a tile in overlapping tiles, to limit memory. Each step blends its tiles.

        Args:
            tile_size (`int`, *optional*): side of a tile in pixels, a multiple of the alignment. Defaults to the trained
                size.

        Raises:
            ValueError: if `tile_size` is not a positive multiple of the alignment.
        """
        tile_size = self.config.sample_size if tile_size is None else tile_size
        factor = self.config.downsampling
        if not is_integer(tile_size) or tile_size < factor or tile_size % factor:
            raise ValueError(f"`tile_size` must be a positive multiple of {factor} pixels, got {shown(tile_size)}.")
        self.tile_size = int(tile_size)

    def disable_tiling(self):
        """Decode every image in one piece."""
        self.tile_size = None

    # The network

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float, codes: torch.Tensor, image: torch.Tensor
    ) -> torch.Tensor:
        r"""
        Predict the noise, v or flow of a noised variable.

        The prediction is `c_skip z_t + c_out F(c_in z_t)`, as in EDM (arXiv:2206.00364, appendix B): c_skip z_t is the best
        linear estimate for z of unit variance, so the network F learns only the rest, which has unit variance too. See
        [`preconditioning`].

        Args:
            sample (`torch.Tensor` of shape `(batch, 3, H, W)`): the noised variable z_t.
            timestep (`torch.Tensor` of shape `(batch,)` or `()`): from 0 to [`last_timestep`], which is 1000 for flows.
            codes (`torch.Tensor` of shape `(batch, codebook_channels, h, w)`): quantized latents.
            image (`torch.Tensor` of shape `(batch, 3, H, W)`): pixels in [-1, 1] of the tokenizer's own decoder.

        Returns:
            `torch.Tensor` of shape `(batch, 3, H, W)`, float32.

        Raises:
            ValueError, TypeError: if an argument is not as above. Times in a tensor are not compared with the limits.
        """
        self.check_codes(codes, image)
        check_noised(sample, timestep, tuple(image.shape), self.last_timestep)
        patch, dtype = self.config.patch_size, self.dtype
        timestep = torch.as_tensor(timestep, device=sample.device, dtype=torch.float32).expand(len(sample))
        sample = sample.float()
        scale, skip, rest = self.preconditioning(timestep[:, None, None, None])
        codes = F.interpolate(codes.to(dtype), scale_factor=self.config.downsampling // patch, mode="nearest")
        patches = torch.cat((sample * scale, image.to(sample)), 1).to(dtype)
        inputs = torch.cat((F.pixel_unshuffle(patches, patch), codes), 1)  # (batch, channels, H / patch, W / patch)
        found = F.pixel_shuffle(self.unet(inputs, timestep).sample, patch).float()
        return skip * sample + rest * found

    def preconditioning(self, timestep: torch.Tensor) -> tuple[torch.Tensor | float, ...]:
        r"""
        The factors `c_in`, `c_skip` and `c_out` of [`forward`] at timesteps, each in their shape or a number.

        With `n^2 = t^2 + (1 - t)^2`, they are `1 / n`, `(2 t - 1) / n^2` and `1 / n` for a flow. With a the product of
        `1 - beta` up to the timestep, they are 1, `sqrt(1 - a)` and `sqrt(a)` for the noise, and 1, 0 and 1 for v.
        """
        if self.config.prediction_type == "flow_prediction":
            share = timestep / NOISE_LEVELS
            scale = (share.square() + (1 - share).square()).rsqrt()
            return scale, (2 * share - 1) * scale.square(), scale
        if self.config.prediction_type == "epsilon":
            signal = self.signal(timestep)
            return 1.0, (1 - signal).sqrt(), signal.sqrt()
        return 1.0, 0.0, 1.0

    @property
    def last_timestep(self) -> int:
        """The timestep of the most noise: 1000 for flows; for the noise and v the scheduler's last, such as 999."""
        is_flow = self.config.prediction_type == "flow_prediction"
        return NOISE_LEVELS if is_flow else len(self.scheduler.alphas_cumprod) - 1

    def signal(self, timestep: torch.Tensor) -> torch.Tensor:
        """The product of `1 - beta` up to timesteps of the noise or v, in their shape."""
        return self.scheduler.alphas_cumprod.to(timestep.device)[timestep.long()]

    def predict(
        self, sample: torch.Tensor, timestep: torch.Tensor, codes: torch.Tensor, image: torch.Tensor
    ) -> torch.Tensor:
        """Same as calling the model, tile by tile if the image is larger than a tile."""
        if self.tile_size is None or max(sample.shape[-2:]) <= self.tile_size:
            return self(sample, timestep, codes, image)
        factor, channels = self.config.downsampling, self.config.codebook_channels
        packed = F.pixel_unshuffle(torch.cat((sample, image.to(sample)), 1), factor)  # pixels as channels of tokens

        def predict_tile(tile: torch.Tensor) -> torch.Tensor:
            noised, given = F.pixel_shuffle(tile[:, channels:], factor).chunk(2, dim=1)
            return self(noised, timestep, tile[:, :channels], given)

        packed = torch.cat((codes.to(packed), packed), 1)
        return decode_tiled(predict_tile, packed, self.tile_size // factor, factor)

    # The variable

    def to_denoised(self, pixels: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Pixels (batch, 3, H, W) as the denoised variable, float32 of the same shape."""
        base = image.float() if self.config.start == "image" else 0.0
        return (pixels.float() - base) / self.config.residual_scale

    def to_pixels(self, denoised: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """The denoised variable (batch, 3, H, W) as pixels, float32, not clipped."""
        base = image.float() if self.config.start == "image" else 0.0
        return base + self.config.residual_scale * denoised.float()

    def expectation(self, prediction: torch.Tensor, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        r"""
        The expectation of z given z_t, of a prediction at `timestep`, both (batch, 3, H, W).

        It is `z_t - t u` for a flow u, `(z_t - sqrt(1 - a) e) / sqrt(a)` for noise e, and `sqrt(a) z_t - sqrt(1 - a) v`
        for v, with a the product of `1 - beta` up to the timestep.
        """
        if self.config.prediction_type == "flow_prediction":
            return sample - timestep / NOISE_LEVELS * prediction
        signal = self.signal(timestep)
        if self.config.prediction_type == "epsilon":
            return (sample - (1 - signal).sqrt() * prediction) / signal.sqrt()
        return signal.sqrt() * sample - (1 - signal).sqrt() * prediction

    # Sampling

    @torch.no_grad()
    def decode(
        self,
        codes: torch.Tensor,
        image: torch.Tensor,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback: Callable[[int, torch.Tensor], None] | None = None,
    ) -> ShowoDiffusionDecoderOutput:
        """
        Make pixels from codes.

        Args:
            codes (`torch.Tensor` of shape `(batch, codebook_channels, h, w)`): quantized latents of the image tokenizer.
            image (`torch.Tensor` of shape `(batch, 3, H, W)`): pixels in [-1, 1] of the tokenizer's own decoder.
            num_inference_steps (`int`, *optional*): steps; by default those of the config. 0 returns `image`.
            generator (`torch.Generator` or a list of one for each image, *optional*): draws the noise.
            callback: called after each step with its number and the variable (batch, 3, H, W).

        Raises:
            ValueError, TypeError: if an argument is not as above.
        """
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        self.check_codes(codes, image)
        self.check_steps("num_inference_steps", steps)
        check_generators(generator, len(codes))
        if callback is not None:
            check_callable("callback", callback, "step", "variable")
        if steps == 0:
            return ShowoDiffusionDecoderOutput(sample=image)
        scheduler = copy.deepcopy(self.scheduler)
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            # By default its last step starts next to the end, so that two steps are hardly more than one.
            scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)], device=image.device)
        else:
            scheduler.set_timesteps(steps, device=image.device)
            drop_negative_timesteps(scheduler)
        noise = randn_tensor(image.shape, generator=generator, device=image.device, dtype=torch.float32)
        sample = noise * getattr(scheduler, "init_noise_sigma", 1.0)
        first = None
        for number, timestep in enumerate(scheduler.timesteps):
            model_input = sample
            if hasattr(scheduler, "scale_model_input"):
                model_input = scheduler.scale_model_input(sample, timestep)
            prediction = self.predict(model_input, timestep, codes, image)
            if first is None and self.config.low_band_sigma is not None:
                first = self.expectation(prediction, sample, timestep)
            sample = scheduler.step(prediction, timestep, sample, generator=generator).prev_sample
            if callback is not None:
                callback(number, sample)
        if first is not None:
            sample = sample + gaussian_blur(first - sample, self.config.low_band_sigma)
        return ShowoDiffusionDecoderOutput(sample=self.to_pixels(sample, image).clamp(-1, 1).to(image.dtype))

    def check_steps(self, name: str, steps: int):
        """Raise `ValueError` or `TypeError` for a number of steps, the argument `name`, that the scheduler cannot take."""
        check_count(name, steps, least=0, most=most_steps(self.scheduler))

    def check_codes(self, codes: torch.Tensor, image: torch.Tensor):
        """Raise `ValueError` or `TypeError` unless codes and image are as [`decode`] takes them."""
        check_tensor("codes", codes)
        check_tensor("image", image)
        factor, channels = self.config.downsampling, self.config.codebook_channels
        if codes.ndim != 4 or codes.shape[1] != channels:
            raise ValueError(f"`codes` must be (batch, {channels}, height, width), got {tuple(codes.shape)}.")
        wanted = (len(codes), self.config.in_channels, codes.shape[2] * factor, codes.shape[3] * factor)
        if tuple(image.shape) != wanted:
            raise ValueError(f"`image` must have the shape {wanted} of the codes, got {tuple(image.shape)}.")


def most_steps(scheduler: SchedulerMixin) -> int:
    """The largest number of steps that a scheduler takes."""
    is_flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    return MAX_COUNT if is_flow else scheduler.config.num_train_timesteps


def drop_negative_timesteps(scheduler: SchedulerMixin):
    """
    Drop the timestep of -1 that diffusers' spacing "trailing" adds for some numbers of steps, such as 61 of 1,000.

    Rounding makes it. A network would be asked for a noise level that does not exist.
    """
    kept = int((scheduler.timesteps >= 0).sum())
    if kept == len(scheduler.timesteps):
        return
    scheduler.timesteps = scheduler.timesteps[:kept]
    if isinstance(scheduler, DPMSolverMultistepScheduler):  # the last noise level is the end of the chain
        scheduler.sigmas = torch.cat([scheduler.sigmas[:kept], scheduler.sigmas[-1:]])


def check_noised(sample: torch.Tensor, timestep: torch.Tensor | float, shape: tuple[int, ...], last_timestep: int):
    """Raise `ValueError` or `TypeError` unless a noised variable is of `shape`, and has a time or one for each image."""
    check_tensor("sample", sample)
    if tuple(sample.shape) != shape:
        raise ValueError(f"`sample` must have the shape {shape} of `image`, got {tuple(sample.shape)}.")
    if not isinstance(timestep, torch.Tensor):
        check_number("timestep", timestep, most=last_timestep)
    elif timestep.shape not in ((), (len(sample),)) or timestep.is_complex() or timestep.dtype == torch.bool:
        raise ValueError(f"`timestep` must be a number, or {len(sample)} in a tensor, got {shown(timestep)}.")


def gaussian_blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Images (batch, channels, H, W) blurred with a Gaussian of `sigma` pixels. The border is repeated."""
    radius = max(1, round(3 * sigma))
    places = torch.arange(-radius, radius + 1, dtype=torch.float32, device=images.device)
    kernel = torch.exp(-places.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(images.dtype).expand(images.shape[1], 1, 1, -1)
    blurred = F.pad(images, [radius] * 4, mode="replicate")
    blurred = F.conv2d(blurred, kernel, groups=images.shape[1])
    return F.conv2d(blurred, kernel.transpose(-1, -2), groups=images.shape[1])
