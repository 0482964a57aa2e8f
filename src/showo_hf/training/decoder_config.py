"""The typed config of a diffusion decoder's training."""

from dataclasses import dataclass, field
from typing import Any

from ..utils.decoder_choices import PREDICTION_TYPES, STARTS
from ..utils.validation import MAX_COUNT, check_count, check_number, check_positive
from .configs import check_choice
from .image_configs import SizedImageRunConfig


WEIGHTINGS = ("simple", "bound")


@dataclass(kw_only=True)
class DiffusionDecoderConfig(SizedImageRunConfig):
    """
    Training of a diffusion decoder, [`ShowoDiffusionDecoder`], on the frozen tokens of an image tokenizer.

    Args:
        model (`str`, defaults to `"embedded"`): the image tokenizer, or the model or pipeline that has one, as a folder or
            a name on the Hub, or "embedded".
        decoder (`str`, *optional*): a diffusion decoder, or a pipeline that has one, whose weights the training starts from.
            `prediction_type`, `start`, `residual_scale`, `architecture` and the last `image_size` are its own then; other
            values are refused.
        teacher (`str`, *optional*): a diffusion decoder of flows, or a pipeline that has one. It is distilled into one of
            `decoder_steps` steps, each of which lands where two of the teacher's do (progressive distillation,
            arXiv:2202.00512). The training starts from the teacher's weights unless `decoder` is given.
        data, batch_size, shift: see [`ImageRunConfig`].
        image_size: see [`SizedImageRunConfig`]; by default the tokenizer's.
        prediction_type (`str`, *optional*): "epsilon", "v_prediction" or "flow_prediction", the default.
        weighting (`str`, defaults to `"simple"`): "simple" weighs all noise levels alike, "bound" as the variational
            bound does, up to a constant factor. A `teacher` needs "simple".
        time_shift (`float`, defaults to 1): how much more often a flow is trained at high noise levels: at
            `s u / (1 + (s - 1) u)` with u uniform and s this number (arXiv:2403.03206, equation 23). Few steps of sampling
            predict at high levels alone. Losses and PSNR of the log and of the validation are means over the shifted levels.
            Other predictions, `weighting="bound"` and a `teacher` need 1.
        image_weight (`float`, defaults to 0): weight of the absolute error of the expected image and of its differences
            between neighbouring pixels.
        start (`str`, *optional*): what the denoised variable is: "image", the default, the residual to the tokenizer's own
            image, or "noise", the whole image.
        residual_scale (`float`, *optional*): the unit of that variable; by default its standard deviation in the first
            images.
        decoder_steps (`int`, *optional*): steps that the decoder takes by default. Without it, they stay those of
            `decoder`, and a new decoder takes 4. A `teacher` needs it.
        low_band_sigma (`float`, *optional*): see [`ShowoDiffusionDecoder`]. Without it, it stays that of `decoder`.
        architecture (`dict`): other entries of [`ShowoDiffusionDecoder`], such as `block_out_channels`.
        mirror (`bool`, defaults to `False`): mirror half of the images.
        cached_images (`int`, defaults to 0): how many images' tokens, and pixels of the tokenizer's own decoder, are kept
            in memory. Images that are not there are then encoded one by one; with 0, those of a batch together.
        save_dtype (`str`, defaults to `"float32"`): dtype of the weights in the result.
    """

    model: str = "embedded"
    decoder: str | None = None
    teacher: str | None = None
    prediction_type: str | None = None
    weighting: str = "simple"
    time_shift: float = 1.0
    image_weight: float = 0.0
    start: str | None = None
    residual_scale: float | None = None
    decoder_steps: int | None = None
    low_band_sigma: float | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    mirror: bool = False
    cached_images: int = 0
    save_dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        if self.decoder_steps is not None:
            check_count("decoder_steps", self.decoder_steps, most=MAX_COUNT)
        elif self.teacher is not None:
            raise ValueError("`decoder_steps` must be given with a `teacher`, such as half of the teacher's steps.")
        elif self.decoder is None:
            self.decoder_steps = 4
        check_count("cached_images", self.cached_images, least=0)
        check_number("image_weight", self.image_weight)
        for name in ("residual_scale", "low_band_sigma"):
            value = getattr(self, name)
            if value is not None:
                check_positive(name, value)
        check_positive("time_shift", self.time_shift)
        check_choice("weighting", self.weighting, WEIGHTINGS)
        if self.teacher is not None and self.weighting != "simple":  # the bound gives pure noise the weight 0
            raise ValueError(f"`weighting` must be 'simple' with a `teacher`, got {self.weighting!r}.")
        if self.time_shift != 1 and self.weighting != "simple":  # the bound's weights are those of uniform levels
            raise ValueError(f"`weighting` must be 'simple' with a `time_shift`, got {self.weighting!r}.")
        if self.time_shift != 1 and (self.teacher is not None or self.prediction_type in ("epsilon", "v_prediction")):
            raise ValueError(
                f"`time_shift` must be 1 with a `teacher`, and with 'epsilon' and 'v_prediction', got {self.time_shift}."
            )
        if self.teacher is not None:
            self.decoder = self.decoder or self.teacher
        for name, choices, default in (
            ("prediction_type", PREDICTION_TYPES, "flow_prediction"),
            ("start", STARTS, "image"),
        ):
            if getattr(self, name) is None and self.decoder is None:
                setattr(self, name, default)
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), choices)
        check_choice("save_dtype", self.save_dtype, ("float32", "bfloat16", "float16"))
